"""The modules that are compared where nobody names them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.distillation import AttentionTransferLoss, Distiller, FeatureLoss, LogitsLoss, RelationalLoss
from tests.distillation.models import ConvNet, Tagger, images, tokens


class Patches(nn.Module):
    """A small vision transformer: its patch embedding returns a map of pixels, its blocks return tokens."""

    def __init__(self, width: int, pooled: bool = True) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.block = nn.Linear(width, width)
        self.norm = nn.Identity()
        self.head = nn.Linear(width, 5)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.block(self.embed(x).flatten(2).mT)
        y: Tensor = self.head(self.norm(hidden.mean(1)) if self.pooled else hidden.mean(1))
        return y


class Segmenter(nn.Module):
    """A convolution to classes at half the resolution, which interpolation turns into the logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, stride=2), nn.ReLU())
        self.classifier = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": nn.functional.interpolate(self.classifier(self.body(x)), scale_factor=2.0)}


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 5))


def chosen(teacher: nn.Module, student: nn.Module, batch: Any, loss: Any = "feature") -> tuple[str, str]:
    return next(iter(Distiller(teacher, [loss]).bind(student, batch).compared.values()))


@pytest.mark.parametrize("loss", ["feature", "attention", "relational"])
def test_the_last_map_before_pooling(loss: str) -> None:
    assert chosen(ConvNet(8, 0), ConvNet(4, 1, stride=2), images(), loss) == ("conv2", "conv2")


def test_the_outermost_of_nested_modules_and_different_names() -> None:
    student = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student.append(nn.Linear(4, 5))
    assert chosen(ConvNet(8, 0), student, images()) == ("0", "conv2")


def test_the_last_tokens_but_not_the_logits() -> None:
    assert chosen(Tagger(8, 0), Tagger(6, 1), tokens()) == ("mix", "mix")
    # Tokens come later than the pixels of the patch embedding.
    assert chosen(Patches(8), Patches(6), images()) == ("block", "block")


def test_maps_as_wide_as_the_logits_are_left_out() -> None:
    assert chosen(Segmenter(8), Segmenter(6), images()) == ("body", "body")


def test_vectors_where_maps_do_not_match() -> None:
    assert chosen(mlp(16), mlp(8), images()) == ("2", "2")
    assert chosen(Patches(8), mlp(7), images()) == ("2", "norm")


def test_nothing_matches() -> None:
    message = (
        r"FeatureLoss: found no matching features: the student has no map and vector '2' \[4, 7\], the teacher map "
        r"'block' \[4, 4, 8\] and no vector; name the modules: FeatureLoss\(student_tap=\.\.\., teacher_tap=\.\.\.\)"
    )
    with pytest.raises(ValueError, match=message):
        chosen(Patches(8, pooled=False), mlp(7), images())
    message = (
        r"RelationalLoss: .* has no map and vector '0' \[4, 192\], the teacher map 'conv2' \[4, 8, 8, 8\] and no v"
    )
    with pytest.raises(ValueError, match=message):
        chosen(ConvNet(8, 0), nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), images(), "relational")


def test_named_taps() -> None:
    assert chosen(ConvNet(8, 0), ConvNet(4, 1), images(), FeatureLoss("relu")) == ("relu", "relu")
    assert chosen(ConvNet(8, 0), ConvNet(4, 1), images(), FeatureLoss("pool", "bn1")) == ("pool", "bn1")
    assert chosen(ConvNet(8, 0), mlp(7), images(), RelationalLoss("1", "conv1")) == ("1", "conv1")


def test_models_without_logits_have_features_too() -> None:
    class Encoder(Tagger):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: Any) -> Any:
            hidden = super().forward(input_ids)["logits"]
            return {"last_hidden_state": hidden, "other": hidden}

    assert chosen(Encoder(8, 0), Encoder(6, 1), tokens()) == ("head", "head")
    with pytest.raises(
        TypeError, match="no logits in the student's output, a dict with keys 'last_hidden_state', 'other'"
    ):
        Distiller(Encoder(8, 0)).bind(Encoder(6, 1), tokens())


def test_shapes_that_do_not_match_name_both_modules() -> None:
    with pytest.raises(ValueError, match=r"FeatureLoss: .* both must be of one kind") as caught:
        chosen(ConvNet(8, 0), ConvNet(4, 1), images(), FeatureLoss("conv2", "fc"))
    assert caught.value.__notes__ == ["comparing student module 'conv2' with teacher module 'fc'"]
    with pytest.raises(ValueError, match=r"AttentionTransferLoss: .* must be"):
        chosen(ConvNet(8, 0), ConvNet(4, 1), images(), AttentionTransferLoss("fc"))
    with pytest.raises(ValueError, match=r"FeatureLoss: the student has 4 features .* the teacher 8"):
        chosen(ConvNet(8, 0), ConvNet(4, 1), images(), FeatureLoss("conv2", projection="none"))
    with pytest.raises(ValueError, match=r"LogitsLoss: .*\[4, 3\], the teacher's \[4, 5\]; .*same classes"):
        Distiller(ConvNet(8, 0)).bind(ConvNet(4, 1, classes=3), images())


def test_probing_puts_replaced_and_resized_buffers_back() -> None:
    class Observing(ConvNet):
        """Replaces a buffer and counts in another, in eval mode too."""

        def __init__(self) -> None:
            super().__init__(4, 1)
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.low = x.min()
            self.seen += 1
            return super().forward(x)

    student = Observing()
    low = student.low
    Distiller(ConvNet(8, 0)).bind(student, images())
    assert student.low is low
    assert (low.item(), student.seen.item()) == (0.0, 0)


def test_a_hugging_face_model_with_attention_maps() -> None:
    transformers = pytest.importorskip("transformers")

    def bert(width: int, layers: int) -> nn.Module:
        torch.manual_seed(layers)
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=width,
            num_labels=3,
            attn_implementation="eager",
        )
        model: nn.Module = transformers.BertForSequenceClassification(config)
        return model.eval()

    teacher, student, batch = bert(16, 3), bert(8, 2), tokens()
    names = tuple(f"bert.encoder.layer.{layer}.attention.self[1]" for layer in (1, 2))
    losses = ["logits", "feature", AttentionTransferLoss(*names, maps="attention")]
    distiller = Distiller(teacher, losses).bind(student, batch)
    assert distiller.compared == {"feature": ("bert", "bert"), "attention": names}
    with distiller.watching():
        output = student(**batch)
    parts = distiller.loss(student, batch, output)
    assert parts["logits"].item() == LogitsLoss()(output.logits, teacher(**batch).logits).item()
    maps = [model(**batch, output_attentions=True).attentions[-1] for model in (student, teacher)]
    kept = batch["attention_mask"].bool()
    squares = (maps[0] - maps[1]).square().movedim(1, 3)[kept[:, :, None] & kept[:, None, :]]
    assert torch.allclose(parts["attention"], squares.mean(), rtol=1e-5)
