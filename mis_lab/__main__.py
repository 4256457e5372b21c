"""``python -m mis_lab`` is ``mis-lab``."""

from mis_lab.cli import main

if __name__ == "__main__":
    main()
