"""The check of arguments that are one of some names."""

from __future__ import annotations

import pytest

from fastcompress.models.choices import check_choice, nearest


def test_messages_name_the_argument_and_the_nearest() -> None:
    check_choice("f", "mode", "fast", ("fast", "slow"))
    with pytest.raises(
        ValueError, match=r"^f: mode 'fasst' is unknown; valid are 'fast', 'slow'; did you mean 'fast'"
    ) as e:
        check_choice("f", "mode", "fasst", ("fast", "slow"))
    assert str(e.value).endswith("?")
    with pytest.raises(ValueError, match=r"valid are 'fast', 'slow'$"):
        check_choice("f", "mode", "xyz", iter(("fast", "slow")))
    with pytest.raises(TypeError, match=r"^f: mode must be one of 'fast', 'slow', got None$"):
        check_choice("f", "mode", None, ("fast", "slow"))


def test_several_names_may_be_near() -> None:
    assert nearest("layer", ["layer1", "layer2", "head"]) in (
        "; did you mean 'layer2' or 'layer1'?",
        "; did you mean 'layer1' or 'layer2'?",
    )
    assert nearest("zzz", ["layer1"]) == ""
