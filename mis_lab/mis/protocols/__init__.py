"""How tasks are drawn from a unit's ranking of the images, one file a way of drawing."""
