"""The child's model card: what it was made of, and how to check that."""

import yaml

from chimerakit.recipe import recipe_to_yaml
from chimerakit.records import Plan

CARD = "README.md"


def write_card(plan: Plan) -> str:
    """The text of the child's README.md; the same for the same plan."""
    hub_names = [name.partition("@")[0] for name in plan.recipe.parents.values() if name is not None]
    front = {"base_model": hub_names, "base_model_relation": "merge"} if hub_names else {}
    library = {} if plan.parents[plan.recipe.base].format == "gguf" else {"library_name": "transformers"}
    front = {**front, **library, "tags": ["merge", "chimera", "chimerakit"]}
    parents = "\n".join(
        f"- `{name}`{f': {path}' if path else ''}{' (the base)' if name == plan.recipe.base else ''}"
        for name, path in plan.recipe.parents.items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# A Chimera

Assembled from the tensors of its parents, without training.

{parents}

```yaml
{recipe_to_yaml(plan.recipe).strip()}
```

`chimerakit.json` records every tensor: which parents it is from, in which shares, and the digest of its bytes.
`chimerakit verify` checks them; with `--parent NAME=PATH` for each parent it proves them against the parents.
"""
