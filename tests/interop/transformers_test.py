"""What Krait saves loads in transformers and gives the same logits; what transformers saves loads in Krait.

Finds the program in $KRAIT. Exit code 77: torch or transformers is not there, nothing was tested.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    from transformers import MambaConfig, MambaForCausalLM
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

KRAIT = os.environ["KRAIT"]
# Both compute in float32; they differ in the order of sums.
TOLERANCE = 2e-5


def krait(*args):
    subprocess.run([KRAIT, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def krait_logits(model, ids, work):
    np.save(work / "ids.npy", ids)
    krait("logits", model, "--tokens", work / "ids.npy", "--out", work / "logits.npy", "--dtype", "float32")
    return np.load(work / "logits.npy")


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def check_same(what, got, expected, tolerance=TOLERANCE):
    error = np.abs(got - expected).max() / expected.std()
    print(f"{what}: largest error {error:.2e} of the standard deviation")
    assert got.shape == expected.shape and error < tolerance, what


def load(folder, dtype=torch.float32):
    model, info = MambaForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{folder}: {kind}: {info[kind]}"
    return model.eval()


def what_krait_trains(work):
    (work / "text.txt").write_text("the old snake sleeps under the tree\n" * 300)
    krait("train", "--model", "byte-tiny", "--data", work / "text.txt", "--out", work / "run", "--steps", 8,
          "--batch-size", 2, "--seq-len", 64, "--lr", "3e-3", "--quiet")
    ids = np.frombuffer(b"the old snake sleeps under", dtype=np.uint8).astype(np.int64)[None]
    saved = work / "run" / "last"
    expected = torch_logits(load(saved), ids)
    check_same("trained by krait, read by transformers", krait_logits(saved, ids, work), expected)

    krait("convert", saved, work / "original", "--layout", "original")
    weights = torch.load(work / "original" / "pytorch_model.bin", weights_only=True)
    assert weights["lm_head.weight"].data_ptr() == weights["backbone.embedding.weight"].data_ptr()
    for name, value in load(saved).state_dict().items():
        name = name.replace("backbone.embeddings", "backbone.embedding")
        assert torch.equal(weights[name], value), name
    check_same("the original layout", krait_logits(work / "original", ids, work), expected)

    krait("convert", saved, work / "bf16", "--dtype", "bfloat16")
    check_same("stored in bfloat16", krait_logits(work / "bf16", ids, work), torch_logits(load(work / "bf16"), ids))


def what_transformers_saves(work):
    torch.manual_seed(3)
    config = MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, state_size=8, use_bias=True,
                         time_step_rank=5)
    model = MambaForCausalLM(config).eval()
    ids = np.random.default_rng(1).integers(0, 300, (2, 33))
    for name, options in {"whole": {}, "shards": {"max_shard_size": "100KB"}}.items():
        model.save_pretrained(work / name, **options)
        check_same(f"saved by transformers, {name}", krait_logits(work / name, ids, work), torch_logits(model, ids))
    for dtype in (torch.float16, torch.bfloat16):
        folder = work / str(dtype)
        model.to(dtype).save_pretrained(folder)
        check_same(f"stored in {dtype}", krait_logits(folder, ids, work), torch_logits(load(folder), ids))
        model.float()


with tempfile.TemporaryDirectory() as folder:
    what_krait_trains(pathlib.Path(folder))
    what_transformers_saves(pathlib.Path(folder))
