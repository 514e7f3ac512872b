"""`python -m sonotune …` is `sonotune …`, which `torchrun -m sonotune` needs."""

from sonotune.cli import main

if __name__ == "__main__":
    main()
