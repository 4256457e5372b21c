"""Machine Interpretability Score of units: tasks, scores with intervals, comparison of kinds of units."""
