"""Fine-tune pretrained audio models on modest hardware.

The rooms, in the order data takes through them (`docs/tour.md` follows one clip): `config` and `registry` say what is
wanted, `audio` and `data` find and check the clips, `features` turns them into batches, `models` loads what is
adapted, `adapters` attaches what is trained, `tasks` says what is learned, `training` runs it, `evaluation` and
`metrics` judge it, `serving` hands it on, `reports` shows it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sonotune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
