"""The text table: a small transformer that tells the language of Django's translations, compressed while it trains."""

__all__: list[str] = []
