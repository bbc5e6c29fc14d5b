"""Networks trained on real data: the dense checkpoint that every compressed one starts from."""

__all__: list[str] = []
