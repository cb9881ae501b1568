"""What work beside the acknowledged updates costs: the judge, and challengers."""
