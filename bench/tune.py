"""One tuning of a model, written down: `python -m bench.tune --model M --result FILE`."""

import argparse
from pathlib import Path

from bench.commands import run_json, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--model", default="chatlm-0.2b")
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--vram-limit", default="12GiB")
    options = parser.parse_args()
    tuning = run_json(
        "autotune", "--target-vram", "0.6", "--vram-limit", options.vram_limit, "--name", "bench",
        "--model", options.model, "--device", options.device,
        *(("--data", options.data) if options.data else ()),
    )  # fmt: skip
    rows = Path(options.data).name if options.data else "bundled"
    write_result(options.result, {"model": options.model, "rows": rows, "tuning": tuning})


if __name__ == "__main__":
    main()
