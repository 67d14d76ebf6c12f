"""The tables of "Are We Solving the Right Problem?" (arXiv 2502.11501) that compare accuracy.

All methods that act inside the decoder do so before the same layer; a random subset is drawn there
too. Which ratio the paper's sweep of alpha has is not in our notes; here it is that of its first
table.
"""

from __future__ import annotations

from pydstp.experiments.reduction import retention_for
from pydstp.experiments.tables import published as paper
from pydstp.experiments.tables.bench import FULL, Bench, Column, labelled
from pydstp.experiments.tables.layout import (
    Table,
    accuracy,
    name,
    number,
    published,
    reasons,
    relative_mean,
)

SOURCE = "arXiv 2502.11501, "
OF_THE_PAPER = ("random", "pooling", "window_fastv", "fastv", "fastv_vis", "reverse_fastv",
                "sparsevlm", "mustdrop")
OTHERS = ("dart", "divprune", "visionzip", "fastervlm", "vispruner", "cdpruner", "prumerge",
          "pyramiddrop", "look_m", "resize")
METHODS = (*OF_THE_PAPER, *OTHERS)
COLUMNS = tuple(Column(task, task) for task in ("read", "trail", "locate", "haystack"))
RATIOS = {1 / 4: "144 of 576", 1 / 9: "64 of 576"}
GROUNDING_RATIOS = (1 / 3, 2 / 9, 1 / 9)
GROUNDING = Column("locate", "locate", (("hits", 1),))
VISIBLE = ("mean_visible_all_layers", "{:.2f}")
SPENT = ("*visible*: mean share of the visual tokens that a decode step reads, over all layers. "
         "`sparsevlm` and `pyramiddrop` reach the ratio in their last stage and read more before; "
         "`mustdrop` follows thresholds, not the ratio; `look_m` prunes behind the prompt.")
NUM_IMAGES = (1, 2, 3, 5, 10)
HAYSTACK_METHODS = ("random", "pooling", "window_fastv", "fastv", "fastv_vis", "sparsevlm",
                    "mustdrop", "divprune", "visionzip", "cdpruner", "resize")
ALPHAS = tuple(step / 10 for step in range(11))
REDUCTIONS = (0.667, 0.778, 0.889)


def methods(bench: Bench) -> Table:
    """Methods at 75 and 88.9 % reduction on every task."""
    full = bench.row(FULL, COLUMNS)
    header = ["method", "kept", *(column.title for column in COLUMNS), "% of all tokens",
              "visible", "paper: % of all tokens"]
    rows = [[name("none"), name("1"), *map(accuracy, full), relative_mean(full, full),
             number(full[0], *VISIBLE), published(100)]]
    for place, ratio in enumerate(RATIOS):
        for method in METHODS:
            runs = bench.row(bench.setting(method, ratio), COLUMNS)
            known = paper.RIGHT_PROBLEM.get(method)
            rows.append([name(method), name(f"{ratio:.3g}"), *map(accuracy, runs),
                         relative_mean(runs, full), number(runs[0], *VISIBLE),
                         published(known and known[place])])
    return Table("Simple baselines against methods", SOURCE + "table 1 (LLaVA-1.5-7B)", header,
                 rows, ["Kept: a quarter and a ninth of the visual tokens, the paper's 144 and 64 "
                        "of 576. The paper has the rows from random to mustdrop, "
                        "as far as numbers stand beside them; the others are what else is built "
                        "here. " + SPENT, *reasons(rows)])


def grounding(bench: Bench) -> Table:
    """`locate` with one hit: the name of the one cell that shows what is asked for."""
    full = bench.run(FULL, GROUNDING)
    header = ["method", *(f"kept {ratio:.3g}" for ratio in GROUNDING_RATIOS), "visible at 0.222",
              "paper: RefCOCO at 0.222"]
    rows = [[name("none"), *[accuracy(full)] * len(GROUNDING_RATIOS), number(full, *VISIBLE),
             published(None)]]
    for method in METHODS:
        runs = [bench.run(bench.setting(method, ratio), GROUNDING) for ratio in GROUNDING_RATIOS]
        rows.append([name(method), *map(accuracy, runs), number(runs[1], *VISIBLE),
                     published(None)])
    return Table("Grounding", SOURCE + "table 2 (RefCOCO)", header, rows,
                 ["Questions with one hit, so that `none` is never right. Of the paper our notes "
                  "say that at a reduction of 77.8 % every method keeps under 25 %; no values. "
                  + SPENT,
                  *reasons(rows)])


def haystack(bench: Bench) -> Table:
    """One star in 1 to 10 pictures: does the question have to guide the choice?"""
    columns = [*(Column(f"star, {count}", "haystack", (("kind", "star"), ("num_images", count)))
                 for count in NUM_IMAGES),
               *(Column(f"border, {count}", "haystack", (("kind", "border"), ("num_images", count)))
                 for count in (2, 5))]
    ratio = next(iter(RATIOS))
    rows = [[name("none"), *map(accuracy, bench.row(FULL, columns))]]
    rows += [[name(method), *map(accuracy, bench.row(bench.setting(method, ratio), columns))]
             for method in HAYSTACK_METHODS]
    return Table("A needle in several pictures, a quarter kept",
                 SOURCE + "table 3 (Visual Haystacks; no numbers in our notes)",
                 ["method", *(column.title for column in columns)], rows,
                 ["`star`: one cell of all pictures has a star. `border`: the question names the "
                  "border of a picture and a cell; at most five borders can be told apart. The "
                  "embedded checkpoint was trained on two to four pictures.", *reasons(rows)])


def alphas(bench: Bench) -> Table:
    """Attention against redundancy (equation 6), from redundancy alone to FastV."""
    ratio = next(iter(RATIOS))
    full = bench.row(FULL, COLUMNS)
    rows = []
    for alpha in ALPHAS:
        setting = labelled(bench.setting("alpha", ratio, alpha=alpha), f"alpha {alpha:g}")
        runs = bench.row(setting, COLUMNS)
        rows.append([name(f"{alpha:g}"), *map(accuracy, runs), relative_mean(runs, full)])
    return Table("Balance of importance and redundancy, a quarter kept",
                 SOURCE + "table 4 (best alpha there: 0.1 on MME, 0 on POPE, 0.8 to 0.9 on SQA and "
                 "TextVQA; single values are not in our notes)",
                 ["alpha", *(column.title for column in COLUMNS), "% of all tokens"], rows,
                 ["1 is FastV; 0 looks at no attention."])


def counted(bench: Bench) -> Table:
    """FastV with the tokens that the model's own merging already saved counted or not."""
    full = bench.row(FULL, COLUMNS)
    factor = bench.config.vision.merge_unit
    header = ["reduction", "counted", "kept of the LLM's", "kept of the patches",
              *(column.title for column in COLUMNS), "% of all tokens", "paper: % of all tokens"]
    rows = []
    for reduction in REDUCTIONS:
        for is_counted in (False, True):
            kept = retention_for(reduction, factor if is_counted else 1)
            setting = FULL if kept == 1 else bench.setting("fastv", kept)
            runs = bench.row(setting, COLUMNS)
            rows.append([name(f"{100 * reduction:.1f} %"), name("yes" if is_counted else "no"),
                         name(f"{kept:.3f}"), name(f"{kept / factor:.3f}"), *map(accuracy, runs),
                         relative_mean(runs, full),
                         published(paper.RIGHT_PROBLEM_TRR[reduction][is_counted])])
    return Table("Training-aware compression counted", SOURCE + "table on Qwen2-VL-7B, FastV",
                 header, rows,
                 [f"A token of this model is made of {factor} patches, so that a reduction of the "
                  f"patches by a share r leaves min(1, {factor} (1 - r)) of the tokens that the "
                  "language model would see (equations 7 and 8)."])
