"""What every result says of the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, results: dict[str, Any], packages: tuple[str, ...], threads: int, folder: Path = RESULTS) -> Path:
    """Write results as JSON, by default under benchmarks/results/, with hardware, load and versions."""
    made = {
        "hardware": f"{processor()}, {threads} thread{'s' if threads > 1 else ''}",
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(made | results, indent=1) + "\n")
    return path


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
