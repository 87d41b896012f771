"""How fast it is, in ratios: python3 run.py bench."""
