"""What rewards cost at full size: memory, operations, the host's time, and seconds on a device."""
