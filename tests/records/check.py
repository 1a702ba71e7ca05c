"""Validates JSON lines from the standard input by the schema of usage records."""

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

schema = json.loads((Path(__file__).parents[2] / "docs/usage-record.schema.json").read_text())
Draft202012Validator.check_schema(schema)
checker = Draft202012Validator(schema)
wrong = 0
for line in sys.stdin:
    for error in checker.iter_errors(json.loads(line)):
        wrong += 1
        print(f"{error.json_path}: {error.message}\n  in {line}")
sys.exit(1 if wrong else 0)
