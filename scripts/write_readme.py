#!/usr/bin/env python
"""Writes what README.md shows of the shipped checkpoint, after a new one: its figures, and the people that it finds in
the sample photograph. The figures are those of its card; the published models' are in `querypose_hf.hub.figures`.
"""

import argparse
import re
from pathlib import Path

from huggingface_hub import ModelCard

from querypose_hf.assets import QUERYPOSE_NANO, SAMPLE_IMAGE
from querypose_hf.cli import main as querypose
from querypose_hf.files import write_text
from querypose_hf.hub.figures import COCO, CROWDPOSE, PUBLISHED_AP


def measured_table(card: ModelCard) -> str:
    """The AP and AP50 of a card's `model-index`, in %, a row for each dataset."""
    figures: dict[str, dict[str, float]] = {}
    for result in card.data.eval_results or []:
        figures.setdefault(result.dataset_name, {})[result.metric_type.lower()] = result.metric_value
    rows = [f"| {name} | {of['ap']:.1f} | {of['ap50']:.1f} |" for name, of in figures.items()]
    return "\n".join(["| querypose-nano on | AP in % | AP50 in % |", "|---|---:|---:|", *rows])


def published_table() -> str:
    """The authors' AP on COCO and CrowdPose, a row for each variant."""
    columns = [("full", COCO), ("light", COCO), ("full", CROWDPOSE)]
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in PUBLISHED_AP):
        found = [PUBLISHED_AP.get((variant, version), {}).get(dataset, "") for version, dataset in columns]
        rows.append(f"| `{variant}` | {' | '.join(map(str, found))} |".replace("  ", " "))
    head = f"| AP in % on | {' | '.join(f'{dataset}, {version}' for version, dataset in columns)} |"
    return "\n".join([head, "|---|" + "---:|" * len(columns), *rows])


def with_figures(text: str) -> str:
    """Text in which the tables between `<!-- figures: NAME -->` and `<!-- end of figures -->` are written anew."""
    tables = {
        "querypose-nano": measured_table(ModelCard.load(Path(QUERYPOSE_NANO) / "README.md")),
        "published": published_table(),
    }

    def filled(found: re.Match[str]) -> str:
        return f"<!-- figures: {found[1]} -->\n\n{tables[found[1]]}\n\n<!-- end of figures -->"

    return re.sub(r"<!-- figures: (.*?) -->.*?<!-- end of figures -->", filled, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="of the project (%(default)s)")
    folder = parser.parse_args().folder
    readme = folder / "README.md"
    write_text(with_figures(readme.read_text(encoding="utf-8")), readme)
    print(f"Figures written to {readme}")
    return querypose(["predict", str(SAMPLE_IMAGE), "--device", "cpu", "--output", str(folder / "docs" / "images")])


if __name__ == "__main__":
    raise SystemExit(main())
