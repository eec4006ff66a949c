"""The documented example with weights from PyTorch runs as written."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/howto/checkpoint.md").read_text()


@pytest.mark.guard
@pytest.mark.slow
def test_weights_come_from_pytorch_and_go_back():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (block,) = [text for text in blocks if "import torch" in text]
    names = {}
    exec(block, names)
    assert names["output"].shape == (1, 16, 16, 3)
