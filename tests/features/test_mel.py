"""Mel filters against `transformers`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from sonotune.features.mel import kaldi_filters, slaney_filters


@pytest.mark.parametrize("bands", [13, 80, 128])
def test_filters_are_those_of_transformers(bands):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bands narrower than a bin of the transform
        slaney = mel_filter_bank(201, bands, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        kaldi = mel_filter_bank(257, bands, 20, 8000, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True)
    np.testing.assert_allclose(slaney_filters(bands, 400, 16_000), slaney.T, atol=1e-12)
    np.testing.assert_allclose(kaldi_filters(bands, 512, 16_000), kaldi.T, atol=1e-12)
