"""What every benchmark shares: the machine's ceilings, interleaved timing, operand rotation and the results file."""

__all__: list[str] = []
