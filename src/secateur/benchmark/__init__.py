"""Standard networks, real data and one protocol, so that two methods differ in the method alone."""

__all__: list[str] = []
