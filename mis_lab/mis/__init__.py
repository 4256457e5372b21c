"""Machine Interpretability Score of units: tasks, scores with intervals, fair comparison of kinds of units."""
