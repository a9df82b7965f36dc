"""Regenerates tests/golden/hf/*.npz with transformers.

    python -m tests.golden.make_hf_logits --peer_python=PYTHON

PYTHON is the interpreter of an environment with torch and transformers, which need not be this
one. Each npz holds the digest of the exported weights, so a changed export cannot pass for an
old one, and the logits of `AutoModelForCausalLM.from_pretrained` on that export.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

_PEER = """
import sys
import numpy as np, torch, transformers
ids, folder, out = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
assert type(model).__name__ == "LlamaForCausalLM"
with torch.inference_mode():
    np.save(out, model(torch.tensor(ids, dtype=torch.long)).logits.numpy())
print(transformers.__version__)
"""


def main() -> None:
    """Writes one npz for each model of hf_models."""
    from tests.golden import hf_models

    parser = argparse.ArgumentParser()
    parser.add_argument("--peer_python", required=True)
    peer_python = parser.parse_args().peer_python
    ids = hf_models.golden_ids()
    for name, config in hf_models.MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            digest = hf_models.export_digest(config, folder / "export")
            np.save(folder / "ids.npy", ids)
            arguments = [folder / "ids.npy", folder / "export", folder / "logits.npy"]
            peer = subprocess.run(
                [peer_python, "-c", _PEER, *map(str, arguments)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            np.savez_compressed(
                hf_models.GOLDEN_FOLDER / f"{name}.npz",
                logits=np.load(folder / "logits.npy"),
                export_digest=digest,
                transformers_version=peer.stdout.strip().splitlines()[-1],
            )
        print(f"{name}: export {digest}, transformers {peer.stdout.strip()}")


if __name__ == "__main__":
    main()
