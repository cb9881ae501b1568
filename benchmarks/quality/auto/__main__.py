"""`python -m benchmarks.quality.auto FOLDER [SET ...]`; see `benchmark`."""

from benchmarks.quality.auto.benchmark import main

if __name__ == "__main__":
    main()
