"""Read what another program saved: a weight file or a folder, and the JSON documents around it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import read_json, require_regular
from jax_ddpm.interop.files import SUFFIXES, read_weights
from jax_ddpm.interop.tree import WeightsName

INDEX = ".index.json"  # names the file of each tensor, if the tensors are spread over several
PIPELINE, SCHEDULER = "model_index.json", "scheduler_config.json"
# What diffusers calls its weights; the first that exists is read.
DIFFUSERS_NAMES = (
    "diffusion_pytorch_model.safetensors",
    f"diffusion_pytorch_model.safetensors{INDEX}",
    "diffusion_pytorch_model.bin",
    f"diffusion_pytorch_model.bin{INDEX}",
)
MAX_SHARDS = 1000


@dataclass(frozen=True)
class Source:
    """The tensors that another program saved, and the JSON documents that belong to them."""

    path: Path | None
    """The file or folder that the user gave; None: a state dict in memory."""
    tensors: Mapping[str, Any]
    """Names -> arrays, nested if the file is."""
    documents: Mapping[str, Any] = field(default_factory=dict)
    """Relative names of JSON files -> their values."""
    arguments_name: str | None = None
    """The name of the document with the constructor arguments of the network."""

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The constructor arguments of the network, as far as a document holds them."""
        return None if self.arguments_name is None else self.documents[self.arguments_name]

    def find(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """Find the document called `name` in any folder: its relative name and its value."""
        return find_document(self.documents, name)


def find_document(documents: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]] | None:
    """Find the document called `name` in any folder: its relative name and its value."""
    for relative, value in documents.items():
        if relative.rpartition("/")[2] == name:
            return relative, value
    return None


def read_source(
    path: Path, arguments: Path | None = None, weights: WeightsName = "average"
) -> Source:
    """Read a weight file, a sharded one, a folder with one, or a pipeline that diffusers saved.

    `arguments` is a JSON file with the constructor arguments of the network; None: the one of the
    same name beside the weights, or config.json. Of a folder that holds both unet/ and unet_ema/,
    `weights` chooses one.

    Raises UserError for a folder with several candidates, for damaged files and for pickles.
    """
    file = find_weights(path, weights)
    documents = read_documents(file, arguments)
    name = _name_arguments(file, arguments)
    read = read_shards if file.name.endswith(INDEX) else read_weights
    return Source(path, read(file), documents, name if name in documents else None)


def find_weights(path: Path, weights: WeightsName = "average") -> Path:
    """Find the weight file, or the index of a sharded one, that `path` stands for."""
    if not path.is_dir():
        require_regular(path)
        return path
    if (path / PIPELINE).is_file():
        _require_pixels(read_object(path / PIPELINE, "the description of a pipeline"), path)
    folders = [path / name for name in ("unet_ema", "unet") if (path / name).is_dir()]
    place = path if not folders else folders[-1] if weights == "raw" else folders[0]
    found = _find_in_folder(place)
    require_regular(found, path)
    return found


def _find_in_folder(folder: Path) -> Path:
    for name in DIFFUSERS_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{folder} is a folder without a weight file ({', '.join(SUFFIXES)})")
    names = ", ".join(file.name for file in found[:5])
    raise UserError(f"{folder} is a folder with {len(found)} weight files ({names}): give one")


def _require_pixels(index: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless the pipeline consists of a U-Net for images and a scheduler."""
    for name, entry in index.items():
        kind = entry[-1] if isinstance(entry, list) and entry else None
        if name.startswith("_") or kind is None or name == "scheduler":
            continue
        if name != "unet":
            raise UserError(
                f"{path} has a {name} ({kind}): only pipelines of a U-Net and a scheduler, which "
                "make images without text or a latent space, can be converted"
            )
        if kind != "UNet2DModel":
            raise UserError(f"{path} has a unet of the class {kind}, but it must be UNet2DModel")


def read_documents(file: Path, arguments: Path | None = None) -> dict[str, Any]:
    """Read the JSON documents that belong to the weights in `file`, by their relative names.

    They are the arguments of the network, and what a pipeline of diffusers holds beside them.
    """
    folder = file.parent
    inside = folder.name in ("unet", "unet_ema")
    prefix, root = (f"{folder.name}/", folder.parent) if inside else ("", folder)
    places = {
        PIPELINE: root / PIPELINE,
        f"scheduler/{SCHEDULER}": root / "scheduler" / SCHEDULER,
        SCHEDULER: folder / SCHEDULER,
    }
    documents = {}
    for document, path in places.items():
        if path.is_file():
            require_regular(path, root)
            documents[document] = read_object(path, "a JSON document of diffusers")
    name = _name_arguments(file, arguments)
    chosen = arguments or folder / name.removeprefix(prefix)
    if arguments is None and not chosen.is_file():
        return documents
    if arguments is None:
        require_regular(chosen, root)
    values = read_object(chosen, "the JSON file of a network's arguments")
    is_of_a_run = "format" in values and arguments is None
    return documents if is_of_a_run else documents | {name: values}


def _name_arguments(file: Path, arguments: Path | None) -> str:
    """The relative name of the document that holds the network's arguments, if there is one."""
    if arguments is not None:
        return arguments.name
    folder = file.parent.name
    prefix = f"{folder}/" if folder in ("unet", "unet_ema") else ""
    beside = file.with_suffix(".json")
    is_index = file.name.endswith(INDEX)
    return prefix + (beside.name if beside.is_file() and not is_index else "config.json")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object, in which numbers may be infinite. Raises UserError for anything else."""
    values = read_json(path, what, infinite=True)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object that maps names to values")
    return values


def read_shards(index: Path) -> dict[str, Any]:
    """Read the tensors that are spread over the files that `index` names.

    Raises UserError for files outside its folder, and unless each tensor is where it should be.
    """
    places = read_object(index, "the index of a sharded weight file").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise UserError(f"{index} must have a weight_map from the names of tensors to files")
    tensors: dict[str, Any] = {}
    for name in _list_shards(places, index):
        require_regular(index.parent / name, index.parent)
        found = read_weights(index.parent / name)
        expected = {tensor for tensor, file in places.items() if file == name}
        if wrong := expected ^ found.keys():
            raise UserError(f"{index} and {name} disagree about the tensor {min(wrong)}")
        tensors |= found
    return tensors


def _list_shards(places: Mapping[str, str], index: Path) -> Iterator[str]:
    files = sorted(set(places.values()))
    if len(files) > MAX_SHARDS:
        raise UserError(f"{index} names {len(files)} files, but at most {MAX_SHARDS} are read")
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names the file {name}, which is not in its folder")
        yield name


def choose_inside(path: Path | None, weights: WeightsName | None) -> WeightsName | None:
    """What to choose in the file itself; None if a folder of its own holds the averages."""
    return None if path is not None and (path / "unet_ema").is_dir() else weights
