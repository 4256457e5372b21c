"""One self-contained page per run: tables, figures, images of units."""
