"""Writes the templates' metadata anew, of the flags: `make templates`."""

import json
from pathlib import Path

from pipelines import template

HERE = Path(__file__).parent

for stage in template.STAGES:
    text = json.dumps(template.metadata(stage), indent=2) + "\n"
    (HERE / f"{stage}.json").write_text(text)
