"""Other runtimes on the same networks, where they are installed (``pip install -c constraints.txt .[peers]``)."""

__all__: list[str] = []
