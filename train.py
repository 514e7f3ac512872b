"""`python train.py model=whisper_nano data=fsdd training.max_epochs=10` is `sonotune train …`."""

import sys

from sonotune.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
