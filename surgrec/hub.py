"""A model of this project on the Hugging Face Hub: from_pretrained, save_pretrained, push_to_hub.

A folder holds model.safetensors, config.json and README.md, the model card. `python -m surgrec.convert RUN
--to hub` makes one from a run, with a card of its record. It is read without a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from surgrec.configs.pretrain import JepaPretrain, MaePretrain, from_document
from surgrec.configs.yaml_io import ConfigError
from surgrec.exports.card import plain_card
from surgrec.exports.model_file import about_of, grid_of, read_tensors, write_model
from surgrec.exports.source import Part, Source
from surgrec.loaders.whole_file import replacing
from surgrec.models.encoder_form import transformer_of
from surgrec.models.video_encoder import VideoEncoder, form_of
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import CONFIG
from surgrec.weights.ours import form_and_clip
from surgrec.weights.positions import check_count
from surgrec.weights.video_model import VideoModel

WEIGHTS: Final = "model.safetensors"
CARD: Final = "README.md"


class SurgRecModel(
    VideoModel, PyTorchModelHubMixin, library_name="surgrec", tags=["video", "surgery", "self-supervised"]
):
    """The encoder of a pretrained model: `forward_features` takes clips uint8, or floating-point in 0..1, [B,
    frames, size, size, 3], and gives tokens [B, N, D]. See VideoModel."""

    def __init__(self, about: dict[str, Any], part: Part) -> None:
        """about: of the model, as its files have it. part: which encoder it is. Both are config.json. Weights
        come with `of` and `from_pretrained`.

        Raises WeightsError where they are not those of a model.
        """
        try:
            read = about_of(about)
            config = from_document(read.pretraining)
            grid = grid_of(read.pretraining)
            check_count(Path(CONFIG), grid)
            if part not in get_args(Part):
                raise ValueError(f"`part` is {part!r}")
        except (ValueError, ConfigError) as error:
            raise WeightsError(
                f"config.json: not of a model of this project ({error}); make the folder with `python -m"
                " surgrec.convert RUN --to hub`"
            ) from error
        assert isinstance(config, MaePretrain | JepaPretrain)
        encoder_form = form_of(config.model, grid)
        encoder = VideoEncoder(transformer_of(encoder_form, config.model.attention), encoder_form)
        super().__init__(encoder, form_and_clip(config)[1], f"{read.identity}#{part}", None)
        self.about = read
        self.part = part
        self.card: str | None = None

    @property
    def transformer(self) -> Any:
        """The network itself."""
        return self.encoder.transformer

    @classmethod
    def of(cls, source: Source, part: Part, card: str | None = None) -> SurgRecModel:
        """One encoder of a model, with the text of its card."""
        model = cls(source.about.plain(), part)
        model.transformer.load_state_dict(source.encoder_tensors(part), assign=True)
        model.card = card
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that was made or read with the model, else one of what its files say."""
        return ModelCard(self.card or plain_card(self.about, self.part))

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {f"encoder.{name}": tensor for name, tensor in self.transformer.state_dict().items()}
        with replacing(save_directory / WEIGHTS) as temporary:
            write_model(temporary, self.about, tensors)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> SurgRecModel:
        """Every tensor is loaded, whatever `strict` says. Raises WeightsError."""
        folder = Path(model_id)

        def file_of(name: str) -> Path:
            if folder.is_dir():
                return folder / name
            found = hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            return Path(found)

        if missing := {"about", "part"} - model_kwargs.keys():
            raise WeightsError(
                f"{model_id}: its config.json has no {' and no '.join(sorted(missing))}: it is no model of"
                " this project; other layouts are read by surgrec.load_model"
            )
        model = cls(**{name: model_kwargs[name] for name in ("about", "part")})
        path = file_of(WEIGHTS)
        about, tensors = read_tensors(path)
        if about != model.about:
            raise WeightsError(f"{path}: of another model than the config.json beside it; fetch both again")
        try:
            model.encoder.load_state_dict(
                {name.replace("encoder.", "transformer.", 1): tensor for name, tensor in tensors.items()},
                assign=True,
            )
        except RuntimeError as error:
            raise WeightsError(f"{path}: does not fit its configuration ({error}); fetch it again") from error
        try:
            card = file_of(CARD)
            model.card = card.read_text(encoding="utf-8") if card.exists() else None
        except EntryNotFoundError:
            model.card = None
        return model.to(map_location).eval()
