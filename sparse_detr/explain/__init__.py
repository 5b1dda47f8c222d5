"""Why a detection is there: drop tokens and run again, find the smallest budget, and account for the cost.

- `interventions.py`: change which tokens are refined, and run an image again, all changes in one batch
- `faithfulness.py`: the tokens that a detection was made from, compared with as many random ones
- `minimal_budget.py`: the smallest budget at which an object is found
- `ledger.py`: tokens, FLOPs and milliseconds by layer, level and size; shares by level that cost less
- `compare.py`: what a second model gains and loses
- `sanity.py`: the same with random weights, where nothing may be left
- `image.py`: all of this for one image
- `words.py`, `page.py`, `pictures.py`, `report.py`: as sentences, as one HTML file, as pictures, as numbers and arrays
"""

from sparse_detr.explain.compare import Difference, compare_models
from sparse_detr.explain.faithfulness import Comparison, Explainer, Explanation, Target, list_targets, search
from sparse_detr.explain.image import Choices, ImageStory, explain_image
from sparse_detr.explain.interventions import EditedBudget, ImageRuns, Intervention, Prediction, why_not_editable
from sparse_detr.explain.ledger import Ledger, make_ledger, propose_levels
from sparse_detr.explain.minimal_budget import FoundFrom, search_budgets

__all__ = [
    "Choices",
    "Comparison",
    "Difference",
    "EditedBudget",
    "Explainer",
    "Explanation",
    "FoundFrom",
    "ImageRuns",
    "ImageStory",
    "Intervention",
    "Ledger",
    "Prediction",
    "Target",
    "compare_models",
    "explain_image",
    "list_targets",
    "make_ledger",
    "propose_levels",
    "search",
    "search_budgets",
    "why_not_editable",
]
