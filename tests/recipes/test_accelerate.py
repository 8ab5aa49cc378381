"""The launch configurations: each is what accelerate's own loader and launcher understand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from support.recipe_runner import RECIPES, ROOT

LAUNCHES = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "ddp": (DistributedType.MULTI_GPU, 8, 1),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "fsdp2_qlora": (DistributedType.FSDP, 2, 1),
    "zero2": (DistributedType.DEEPSPEED, 8, 1),
    "zero3": (DistributedType.DEEPSPEED, 8, 1),
    "sequence_parallel": (DistributedType.DEEPSPEED, 8, 1),
    "two_nodes": (DistributedType.MULTI_GPU, 16, 2),
}
"""Kind, processes, machines."""


def test_every_launch_configuration_is_known() -> None:
    assert {path.stem for path in (RECIPES / "accelerate").glob("*.yaml")} == set(LAUNCHES)
    page = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    assert [name for name in LAUNCHES if f"accelerate/{name}.yaml" not in page] == []


@pytest.mark.parametrize("name", LAUNCHES)
def test_accelerate_reads_it(name: str) -> None:
    path = RECIPES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    kind, processes, machines = LAUNCHES[name]
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    assert config.mixed_precision == "bf16"
    assert config.use_cpu is False


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_launcher_takes_every_key_of_it(name: str) -> None:
    path = RECIPES / "accelerate" / f"{name}.yaml"
    parser = launch_command_parser()
    known = {action.dest for action in parser._actions}
    args = parser.parse_args(["--config_file", str(path), "recipes/lora_sft.py", "--config", "x.yaml"])
    args.nondefault = set()
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == LAUNCHES[name][1]
    assert args.use_fsdp == (LAUNCHES[name][0] == DistributedType.FSDP)
    assert args.use_deepspeed == (LAUNCHES[name][0] == DistributedType.DEEPSPEED)
    nested = yaml.safe_load(path.read_text(encoding="utf-8"))
    sections = ("fsdp_config", "deepspeed_config", "parallelism_config")
    for key in [key for section in sections for key in nested.get(section, {})]:
        assert key in known, f"{key} is no option of accelerate launch"


def test_fsdp2_saves_whole_adapters() -> None:
    for name in ("fsdp2", "fsdp2_qlora"):
        config = yaml.safe_load((RECIPES / "accelerate" / f"{name}.yaml").read_text(encoding="utf-8"))["fsdp_config"]
        assert config["fsdp_version"] == 2
        assert config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        assert config["fsdp_activation_checkpointing"] is False


def test_under_fsdp_4_bit_weights_are_stored_in_the_dtype_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP shards tensors of one dtype; elsewhere bitsandbytes keeps its own (uint8)."""
    import lora_sft
    from trl import ModelConfig

    given: list[ModelConfig] = []
    monkeypatch.setattr(lora_sft, "get_quantization_config", lambda config: given.append(config) or "nf4")
    for launched, storage in (("true", "bfloat16"), ("false", None)):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", launched)
        asked = ModelConfig("model", dtype="bfloat16", load_in_4bit=True, use_bnb_nested_quant=True)
        assert lora_sft.quantization(asked) == "nf4"
        assert given[-1].bnb_4bit_quant_storage == storage
        assert (given[-1].bnb_4bit_quant_type, given[-1].use_bnb_nested_quant) == ("nf4", True)


def test_a_model_in_mxfp4_is_unpacked(tmp_path: Path) -> None:
    import lora_sft
    from transformers import GptOssConfig
    from trl import ModelConfig

    GptOssConfig(quantization_config={"quant_method": "mxfp4"}).save_pretrained(tmp_path / "packed")
    GptOssConfig().save_pretrained(tmp_path / "plain")
    assert lora_sft.quantization(ModelConfig(str(tmp_path / "packed"))).dequantize is True
    assert lora_sft.quantization(ModelConfig(str(tmp_path / "plain"))) is None
