"""A pretrained model codes a text there and back."""

from __future__ import annotations

import io
import lzma

import pytest

from distill import codec, mini

from ..real import smollm2_folder


@pytest.mark.real
def test_a_pretrained_model_codes_what_it_says_and_better_than_xz():
    reader = codec.load_model(smollm2_folder())
    data = (mini.FOLDER / "story.txt").read_bytes()[:300]
    out, back = io.BytesIO(), io.BytesIO()
    settings = codec.Settings(correct=(), context=48, overlap=24)  # so that a window is begun anew
    report = codec.compress_stream(io.BytesIO(data), out, reader, settings, verify=False)
    assert report.coded == 1 and abs(8 * report.payload - report.model_bits) < 0.003 * report.model_bits + 32
    assert report.payload < 0.6 * len(lzma.compress(data, format=lzma.FORMAT_ALONE))
    codec.decompress_stream(io.BytesIO(out.getvalue()), back, reader)
    assert back.getvalue() == data
