"""Methods: what a name means, how names compose, and what they expand to, pinned."""

import pytest
from torch import Tensor, nn

from fxdistill.compiler.build import build
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import PIPELINE
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.errors import InputError, PairingError, PlanError
from fxdistill.methods import METHODS, RATE, Recipe, composed
from fxdistill.methods.cascade import Cascade
from fxdistill.models import convnet
from fxdistill.passes.schedule import Schedule
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import DataPlan, Pair
from fxdistill.plan.training import LossTerm, Stage
from tests.plugins import Add
from tests.tiny_models import planned

PAIR = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8)).pairs[0]
PAIRS: tuple[Pair, ...] = tuple(PAIR.changed(name=name) for name in ("a", "b"))
OWN, IMITATION = LossTerm(loss="cross-entropy"), LossTerm(loss="kd")
WARM_UPS = [("warm-up-1", 3, [("mse[a]", 1.0)]), ("warm-up-2", 4, [("mse[b]", 1.0)])]
KD = [("cross-entropy", 0.1), ("kd", 0.9)]
ATTENTION = [("cross-entropy", 1.0), ("attention[a]", 1000.0), ("attention[b]", 1000.0)]
PKT = [("cross-entropy", 1.0), ("pkt[b]", 30_000.0)]
MAIN = {
    "kd": KD, "attention": ATTENTION, "pkt": PKT,
    "features": [("cross-entropy", 1.0), ("mse[a]", 1.0), ("mse[b]", 1.0)],
    "supervised": [("cross-entropy", 1.0)],
    "kd-standardized": [("cross-entropy", 0.1), ("kd-standardized", 9.0)],
    "dkd": [("cross-entropy", 1.0), ("dkd", 1.0)],
    "dist": [("cross-entropy", 1.0), ("dist", 2.0)],
    "sp": [("cross-entropy", 1.0), ("sp[b]", 3000.0)],
    "rkd": [("cross-entropy", 1.0), ("rkd[b]", 1.0)],
    "vid": [("cross-entropy", 1.0), ("vid[a]", 1.0), ("vid[b]", 1.0)],
    "crd": [("cross-entropy", 1.0), ("crd[b]", 0.8)],
    "cwd": [("cross-entropy", 1.0), ("cwd[a]", 50.0), ("cwd[b]", 50.0)],
}  # fmt: skip
"""The main stage of every method that has one, beside cross-entropy."""


def expanded(method: str, recipe: Recipe) -> tuple[Stage, ...]:
    stages: tuple[Stage, ...] = Schedule(method)(recipe).value
    return stages


def told(stages: tuple[Stage, ...]) -> list[tuple[str, int, list[tuple[str, float]]]]:
    return [(stage.name, stage.epochs, [(t.name, t.weight) for t in stage.losses]) for stage in stages]


@pytest.mark.parametrize(
    ("method", "warm_ups", "main"),
    [
        ("indistill", WARM_UPS, KD),
        *((name, [], main) for name, main in MAIN.items()),
        *((f"indistill+{name}", WARM_UPS, main) for name, main in MAIN.items()),
    ],
)
def test_what_a_name_means(method: str, warm_ups: list[object], main: list[object]) -> None:
    stages = expanded(method, Recipe(PAIRS, OWN, IMITATION, epochs=9, lr=0.5))
    assert told(stages) == [*warm_ups, ("main", 9, main)]
    assert [stage.schedule for stage in stages] == ["constant"] * len(warm_ups) + ["cosine"]
    assert {(s.optimizer.name, s.optimizer.lr, s.optimizer.weight_decay) for s in stages} == {("adam", 0.5, 0.0)}


@pytest.mark.parametrize(
    ("method", "main"),
    [
        ("kd", [("kd", 1.0)]),
        ("attention", [("attention[a]", 1000.0), ("attention[b]", 1000.0)]),
        ("pkt", [("pkt[b]", 1.0)]),
        ("kd-standardized", [("kd-standardized", 1.0)]),
        ("dist", [("dist", 1.0)]),
        ("sp", [("sp[b]", 1.0)]),
        ("rkd", [("rkd[b]", 1.0)]),
        ("crd", [("crd[b]", 1.0)]),
        ("vid", [("vid[a]", 1.0), ("vid[b]", 1.0)]),
        ("indistill", [("kd", 1.0)]),
        ("indistill+pkt", [("pkt[b]", 1.0)]),
    ],
)
def test_a_task_without_a_term_of_its_own(method: str, main: list[object]) -> None:
    stages = expanded(method, Recipe(PAIRS, None, IMITATION))
    assert told(stages)[-1][2] == main
    assert not any(term.loss == "cross-entropy" for stage in stages for term in stage.losses)


def test_the_warm_ups_differ_in_what_they_compare_and_in_their_optimiser() -> None:
    recipe = Recipe(PAIRS, OWN, IMITATION)
    one, other = (expanded(f"{name}+kd", recipe) for name in ("indistill", "indistill-released"))
    assert told(one) == told(other) == [*WARM_UPS, ("main", 60, KD)]
    for stages, compare, restart in ((one, "standardized", False), (other, "released", True)):
        assert {(s.losses[0].compare, s.optimizer.restart) for s in stages[:-1]} == {(compare, restart)}
        assert not stages[-1].optimizer.restart
    assert one[-1] == other[-1]
    assert composed("indistill-released").parts[-1][0] == "pkt"


def test_the_main_stage_of_every_method_is_pinned() -> None:
    assert MAIN.keys() == {name for name in METHODS.names() if METHODS.get(name).main is not None} - {
        "cascade"
    }  # see test_cascade


@pytest.mark.parametrize("imitation", [None, LossTerm(loss="binary-kd"), LossTerm(loss="squared-error")])
@pytest.mark.parametrize("method", ["dkd", "kd-standardized", "dist"])
def test_predictions_that_are_no_choice_between_classes(method: str, imitation: LossTerm | None) -> None:
    """A yes or no of each class, a number, an embedding: no softmax, so that another method is to be chosen."""
    with pytest.raises(PlanError, match="has no term for this task") as caught:
        expanded(method, Recipe(PAIRS, OWN, imitation))
    named = caught.value.hint.partition(": ")[2].split(", ")
    assert {"attention", "sp"} < set(named)
    assert not {"dkd", "kd-standardized", "dist"} & set(named)


@pytest.mark.parametrize("loss", ["pkt", "sp", "rkd", "crd"])
def test_how_images_lie_to_each_other_is_asked_of_embeddings_where_there_are_some(loss: str) -> None:
    (stage,) = expanded(loss, Recipe(PAIRS, None, None, embeds=True, student="pupil", teacher="aux"))
    assert [(t.loss, t.pair, t.student, t.teacher, t.weight) for t in stage.losses] == [
        (loss, None, "pupil", "aux", 1.0)
    ]


@pytest.mark.parametrize(("loss", "weight"), [("cwd", 50.0), ("attention", 1000.0)])
def test_activity_has_a_place_in_maps_alone(loss: str, weight: float) -> None:
    flat = PAIR.student.changed(shape=[2, 4, 1, 1])
    pairs = (PAIRS[0], PAIRS[1].changed(student=flat))
    assert told(expanded(loss, Recipe(pairs, OWN)))[-1][2] == [("cross-entropy", 1.0), (f"{loss}[a]", weight)]
    with pytest.raises(PlanError, match="has no term for this task"):
        expanded(loss, Recipe(pairs[1:], OWN))


@pytest.mark.parametrize("method", ["dkd", "supervised", "indistill+dkd"])
def test_a_method_that_learns_from_labels_needs_some(method: str) -> None:
    """Of a student that is given: the cascade, which makes its own, is no other choice."""
    with pytest.raises(PlanError, match=r"(dkd|supervised)' learns from labels, and the images have none") as caught:
        expanded(method, Recipe(PAIRS, None, IMITATION))
    named = set(caught.value.hint.partition(": ")[2].split(", "))
    assert {"kd", "dist"} < named
    assert not {"dkd", "supervised", "cascade"} & named
    with pytest.raises(PlanError, match="has no term for this task"):
        expanded(method, Recipe(PAIRS, None, None, embeds=True))


def test_terms_are_of_the_recipes_members() -> None:
    taps = {role: getattr(PAIR, role).changed(member=name) for role, name in (("teacher", "aux"), ("student", "pupil"))}
    recipe = Recipe(
        (PAIR.changed(**taps),), OWN.changed(student="pupil"), IMITATION.changed(student="pupil", teacher="aux"),
        teacher="aux", student="pupil")  # fmt: skip
    for method in (*MAIN, "indistill"):
        for stage in expanded(method, recipe):
            for term in stage.losses:
                assert term.student == "pupil"
                assert term.teacher in (None, "aux")
    assert any(term.teacher == "aux" for term in expanded("kd", recipe)[-1].losses)


# Composition


def test_parts_of_a_name() -> None:
    indistill = composed("indistill")
    assert [name for name, _ in indistill.parts] == ["indistill", "kd"]
    assert indistill.name == "indistill"
    assert (indistill.lacks_pairs(Recipe(())), indistill.criterion) == (True, "l1")
    assert set(indistill.passes) | set(composed("cascade").passes) == set(PIPELINE)
    assert [name for name, _ in composed("indistill+pkt").parts] == ["indistill", "pkt"]
    assert not composed("kd").lacks_pairs(Recipe(()))
    embeds = Recipe((), embeds=True)
    assert [composed(name).lacks_pairs(embeds) for name in ("pkt", "indistill+pkt", "vid")] == [False, True, True]
    assert composed("kd").parts == composed("indistill+kd").parts[1:]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("kd+attention", "'kd' has no warm-up, so nothing of it is left in 'kd[+]attention'", "indistill"),
        ("indistill+kd+pkt", "'kd' has no warm-up", "indistill"),
        ("pkt+indistill", "'pkt' has no warm-up", "indistill"),
        ("kdd", "there is no method named 'kdd'", "did you mean 'kd'"),
        ("indistill+pktt", "there is no method named 'pktt'", "did you mean 'pkt'"),
        ("indistill+", "there is no method named ''", "known are"),
        ("", "there is no method named ''", "known are"),
        ("indistill kd", "there is no method named 'indistill kd'", "did you mean 'indistill'"),
    ],
)
def test_names_that_do_not_compose(name: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        composed(name)
    assert hint in caught.value.hint
    assert caught.value.where == "--method"
    assert caught.value.exit_code == 2


def test_warm_ups_of_one_name_are_told_apart() -> None:
    """The same warm-up twice would give stages of one name twice."""
    with pytest.raises(InputError, match=r"'indistill' occurs twice in 'indistill\+indistill'"):
        composed("indistill+indistill")


HEAD = (
    "from fxdistill.methods import Method\nfrom fxdistill.plan.schema import DataPlan\n"
    "from fxdistill.plan.training import LossTerm, Optimizer, Stage\n"
)


def test_a_method_of_ones_own(add: Add) -> None:
    """Its warm-up, its main stage's default, its criterion, composed with others."""
    add(
        METHODS,
        "early",
        HEAD
        + """
def warm_up(recipe):
    loss = LossTerm(loss="attention", pair=recipe.pairs[0].name)
    return [Stage(name="early", epochs=2, losses=[loss], optimizer=Optimizer(name="sgd", lr=recipe.lr, momentum=0.9))]

METHOD = Method(summary="the first pair, early", warm_up=warm_up, needs_pairs=True, default_main="pkt", criterion="l2")
""",
    )
    recipe = Recipe(PAIRS, OWN, IMITATION, epochs=9)
    early = ("early", 2, [("attention[a]", 1.0)])
    assert told(expanded("early", recipe)) == [early, ("main", 9, PKT)]
    assert told(expanded("early+kd", recipe)) == [early, ("main", 9, KD)]
    assert told(expanded("early+indistill", recipe)) == [early, *WARM_UPS, ("main", 9, KD)]
    assert composed("early+indistill").criterion == "l2"
    with pytest.raises(InputError) as caught:
        composed("pkt+kd")
    assert "early, indistill" in caught.value.hint


def test_a_default_without_a_main_stage_is_named(add: Add) -> None:
    add(METHODS, "endless", HEAD + "METHOD = Method('x', warm_up=lambda recipe: [], default_main='indistill')\n")
    with pytest.raises(PlanError, match="the method 'indistill' has no main stage") as caught:
        composed("endless")
    assert caught.value.hint == "name another one last"


def test_a_method_without_a_term_for_a_task_is_named(add: Add) -> None:
    add(METHODS, "labels-only", HEAD + "METHOD = Method('x', main=lambda r: [r.supervised] if r.supervised else [])\n")
    assert told(expanded("labels-only", Recipe((), OWN))) == [("main", 60, [("cross-entropy", 1.0)])]
    with pytest.raises(PlanError, match="the method 'labels-only' has no term for this task"):
        expanded("labels-only", Recipe((), None))


# Whole plans


def plan_of(method: str, task: str = "classification", epochs: int = 60) -> Plan:
    sizes = {"teacher": [16, 32, 64], "student": [8, 16, 32]}
    teacher, student = (convnet(widths=widths) for widths in sizes.values())
    data = DataPlan(spec=None, train_size=20)
    made = Options(input_shape=(2, 1, 8, 8), method=method, task=task, epochs=epochs, data=data)
    plan = compile_plan(teacher, student, made)
    program = build(plan, teacher, student)
    assert {term.key for term in program.terms} == {t.name for s in plan.arm("distilled").stages for t in s.losses}
    return plan


@pytest.mark.parametrize("method", [*MAIN, "indistill", "indistill+attention", "indistill+pkt"])
def test_methods_make_plans(method: str) -> None:
    plan = plan_of(method, epochs=4)
    assert plan.method == method
    stages = plan.arm("distilled").stages
    assert [stage.name for stage in stages[:-1]] == [f"warm-up-{i + 1}" for i in range(3 * ("indistill" in method))]
    main = MAIN.get(method.rpartition("+")[2], KD)
    assert {term.loss for term in stages[-1].losses} == {name.partition("[")[0] for name, _ in main}
    assert plan.control is not None
    assert plan.arm("control").stages[0].epochs == sum(stage.epochs for stage in stages)
    assert [term.name for term in plan.control.losses] == ["cross-entropy"]
    assert plan.control.losses[0].weight == 1.0


def test_a_plan_for_retrieval_has_no_labels_and_no_control() -> None:
    plan = plan_of("indistill+pkt", "retrieval")
    assert plan.control is None
    assert {term.loss for arm in plan.all_arms for stage in arm.stages for term in stage.losses} == {"mse", "pkt"}
    assert [arm.name for arm in plan.all_arms] == ["distilled"]


@pytest.mark.parametrize(
    ("task", "method", "labelled", "why"),
    [
        ("retrieval", "pkt", True, "nothing but a teacher says what to learn in the task 'retrieval'"),
        ("classification", "pkt", False, "nothing but a teacher says what to learn of images without labels"),
        ("classification", "cascade", True, "the method 'cascade' makes its student while it trains"),
    ],
)
def test_a_control_that_cannot_be_is_refused_where_it_is_asked_for(
    task: str, method: str, labelled: bool, why: str
) -> None:
    data, cascade = DataPlan(spec=None, labelled=labelled), Cascade(keep=0.5) if method == "cascade" else None
    wanted = Options(input_shape=(2, 1, 8, 8), method=method, task=task, data=data, cascade=cascade, control=True)
    student = None if cascade else convnet(widths=[4, 8])
    with pytest.raises(InputError, match=f"no control arm: {why}") as refusal:
        compile_plan(convnet(widths=[8, 16]), student, wanted)
    assert refusal.value.where == "--control"


def test_a_method_may_leave_passes_out(add: Add) -> None:
    """One that compares predictions alone needs neither coupling nor pairs."""
    passes = ("trace", "schedule", "instrument", "specialize")
    add(
        METHODS,
        "plain-kd",
        HEAD
        + f"""
from fxdistill.methods.kd import main
METHOD = Method("kd alone", main=main, passes={passes})
""",
    )
    plan = plan_of("plain-kd")
    assert plan.pairs == []
    assert plan.kept == []
    assert plan.arm("distilled").stages[0].losses[1].loss == "kd"


@pytest.mark.parametrize(
    ("passes", "message"),
    [(("trace", "shedule"), "no pass is named 'shedule'"), (("trace",), "the passes of the method 'odd' make no plan")],
)
def test_passes_that_make_no_plan(add: Add, passes: tuple[str, ...], message: str) -> None:
    add(
        METHODS,
        "odd",
        f"{HEAD}\nfrom fxdistill.methods.kd import main\nMETHOD = Method('x', main=main, passes={passes})\n",
    )
    with pytest.raises(InputError, match=message) as caught:
        plan_of("odd")
    assert "schedule" in caught.value.hint


def test_a_method_that_needs_pairs_says_so() -> None:
    """A method that compares predictions alone can do without pairs; a note says so."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(1))
            return logits

    for method in ("attention", "indistill", "pkt"):
        with pytest.raises(PairingError, match="no teacher node can be paired"):
            compile_plan(convnet(), Flat(), Options(input_shape=(2, 1, 8, 8), method=method))
    plan = compile_plan(convnet(), Flat(), Options(input_shape=(2, 1, 8, 8), method="kd"))
    assert plan.pairs == []
    assert "no-pairs" in [remark.code for remark in plan.diagnostics]
    embeds = compile_plan(convnet(), Flat(), Options(input_shape=(2, 1, 8, 8), method="pkt", task="retrieval"))
    assert (embeds.pairs, [term.loss for term in embeds.arms[0].stages[0].losses]) == ([], ["pkt"])


def test_warm_ups_of_two_methods_have_names_of_their_own() -> None:
    method = composed("indistill+indistill-released+kd")
    found = method.warm_ups(Recipe(pairs=PAIRS, supervised=OWN, imitation=IMITATION))
    assert [(stage.name, stage.losses[0].compare) for stage in found] == [
        ("warm-up-1", "standardized"), ("warm-up-2", "standardized"),
        ("indistill-released-warm-up-1", "released"), ("indistill-released-warm-up-2", "released"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rate"),
    [("kd", RATE), ("indistill", RATE), ("indistill-released", 1e-3), ("indistill-released+kd", 1e-3),
     ("cascade", 0.008), ("indistill+cascade", 0.008), ("indistill-released+cascade", 0.008)],
)  # fmt: skip
def test_the_rate_is_that_of_the_last_part_that_has_one(name: str, rate: float) -> None:
    assert composed(name).lr == rate
