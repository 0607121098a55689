"""The embedded text encoder: deterministic, one row a word, an encoding of its own for the empty prompt."""

import pytest
import torch

from mova_engine.codecs import ByteTextEncoder, TextEncoder, build_text_encoder
from mova_engine.errors import MovaError

CAPTION = "a red ball bouncing on the floor at a slow tempo"


def test_one_row_a_word_then_the_end_then_zeros() -> None:
    encoder = build_text_encoder("bytes", tokens=14, dim=64)
    assert isinstance(encoder, TextEncoder)
    rows = encoder.encode([CAPTION])[0]
    assert rows.shape == (14, 64)
    assert (rows.abs().sum(1) > 0).tolist() == [True] * 12 + [False] * 2
    assert 0.7 < rows[:12].std().item() < 1.5


def test_the_nano_caption_fits_twelve_rows_and_needs_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    rows = ByteTextEncoder(12, 64).encode([CAPTION])
    assert rows.abs().sum(2).min() > 0
    assert len(recwarn) == 0


def test_the_same_bytes_give_the_same_vector_everywhere() -> None:
    """Recorded values: a change here makes every trained model deaf to its captions."""
    rows = ByteTextEncoder(3, 8).encode(["red ball"])
    expected = torch.tensor([[0.304133, -0.854665, 1.260172, 0.97647], [-1.335728, 2.090143, 1.616913, 0.28049]])
    torch.testing.assert_close(rows[0, :2, :4], expected, rtol=0, atol=1e-6)


def test_words_differ_and_case_does_not() -> None:
    encoder = ByteTextEncoder(8, 64)
    red, blue, shout = encoder.encode(["a red ball", "a blue ball", "A RED ball"])
    assert torch.equal(red, shout)
    assert torch.equal(red[[0, 2, 3]], blue[[0, 2, 3]])
    assert (red[1] - blue[1]).norm() > 5
    swapped = encoder.encode(["ball red a"])[0]
    assert not torch.equal(swapped[0], red[2]), "order must be visible"


def test_the_empty_prompt_is_the_end_row_alone() -> None:
    encoder = ByteTextEncoder(8, 64)
    empty = encoder.encode([""])[0]
    assert empty[0].abs().sum() > 0
    assert empty[1:].abs().sum() == 0
    assert torch.equal(encoder.encode(["  "])[0], empty)


def test_signs_and_any_script_count_as_pieces() -> None:
    rows = ByteTextEncoder(8, 16).encode(["мяч, 球!"])[0]
    assert (rows.abs().sum(1) > 0).sum() == 5


def test_words_that_do_not_fit_are_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = ByteTextEncoder(4, 16)
    long = encoder.encode([CAPTION])
    assert "11 words and signs, only the first 3 are used" in caplog.text
    assert torch.equal(long, encoder.encode(["a red ball"]))


def test_dtype_width_and_identity() -> None:
    encoder = build_text_encoder("bytes", tokens=4, dim=7, dtype=torch.bfloat16)
    assert encoder.encode(["x", "y z"]).shape == (2, 4, 7)
    assert encoder.encode(["x"]).dtype == torch.bfloat16
    assert encoder.fingerprint() != ByteTextEncoder(4, 8).fingerprint()
    with pytest.raises(MovaError, match="list of strings"):
        encoder.encode("a red ball")
    with pytest.raises(MovaError, match="positive"):
        ByteTextEncoder(0, 8)
