"""The command line's arguments and options: names, meanings and bounds, each said once for all commands.

Lists of names in help texts (``{methods}``) are filled in when a help text is shown: see :mod:`fxdistill.cli.help`.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fxdistill.cli.help import names, version
from fxdistill.cli.values import there

_MODEL = "A .pt file, or a factory such as torchvision.models:resnet18?num_classes=10."
RUN_OR_MODEL = f"A run directory. {_MODEL}"
_DATA = "{sources}, or my.module:factory."
_SHAPE = "Shape of one batch. Default: from the data, else the file, else 1x3x224x224."
_EACH = "With two models also teacher=…, student=…; for compare a=…, b=…."
_ONE = f"{_EACH} Default: from file, library, data."
OUTPUT_OF = "Which entry of the {}'s output is the prediction: NAME or INDEX. Default: the one that fits."
_ALIGN = "slice: prune the teacher's taps; shrink: make a smaller teacher first; project: a learned encoder."
_FACTORY = "Factory for a {}file that is a state dict."
_ARGUMENT = "KEY=VALUE for that factory; repeatable."
_ENTRY = "Entry of the {}checkpoint that holds the weights: state_dict_ema. Default: a usual name."

Device = Literal["auto", "cpu", "cuda"]
Choosing = Literal["off", "on", "auto"]
Align = Literal["slice", "shrink", "project"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Spacing = Literal["paper", "even"]
Threshold = Literal["global", "layer"]

Version = Annotated[bool, typer.Option(
    "--version", callback=version, is_eager=True, help="Print the versions of fxdistill and of what it depends on."
)]  # fmt: skip

# models
Model = Annotated[str, typer.Argument(help=_MODEL, callback=there)]
Student = Annotated[
    str | None, typer.Argument(metavar="STUDENT", help=f"{_MODEL} Not given for --method cascade.", callback=there)
]
RunOrModel = Annotated[str, typer.Argument(metavar="RUN_DIR|MODEL", help=RUN_OR_MODEL, callback=there)]
Factory = Annotated[str | None, typer.Option("--factory", help=_FACTORY.format(""))]
Argument = Annotated[list[str], typer.Option("--factory-arg", help=_ARGUMENT)]
Entry = Annotated[str | None, typer.Option("--entry", help=_ENTRY.format(""))]
TeacherEntry = Annotated[str | None, typer.Option("--teacher-entry", help=_ENTRY.format("teacher's "))]
StudentEntry = Annotated[str | None, typer.Option("--student-entry", help=_ENTRY.format("student's "))]
TeacherFactory = Annotated[str | None, typer.Option("--teacher-factory", help=_FACTORY.format("teacher "))]
TeacherArgument = Annotated[list[str], typer.Option("--teacher-arg", help=_ARGUMENT)]
StudentFactory = Annotated[str | None, typer.Option("--student-factory", help=_FACTORY.format("student "))]
StudentArgument = Annotated[list[str], typer.Option("--student-arg", help=_ARGUMENT)]
EACH_OF = "For one of the two: a=… or b=…."
Factories = Annotated[list[str], typer.Option("--factory", help=f"{_FACTORY.format('')} {EACH_OF}")]
Arguments = Annotated[list[str], typer.Option("--factory-arg", help=f"{_ARGUMENT} {EACH_OF}")]
Entries = Annotated[list[str], typer.Option("--entry", help=f"{_ENTRY.format('')} {EACH_OF}")]
Allow = Annotated[
    list[str], typer.Option("--allow-factory", help="A module of your own whose factories may be called; repeatable.")
]
Trust = Annotated[
    bool, typer.Option("--trust-code", "--trust-pickle", help="Load pickles and .pt2 files: they can run any code.")
]

# data
Input = Annotated[str, typer.Option("--input", help=_SHAPE)]
Size = Annotated[list[str], typer.Option("--size", help=f"Image size that a model reads: 224, 224x192. {_ONE}")]
Crop = Annotated[list[str], typer.Option("--crop", help=f"Share of the resized side that is cut out: 0.875. {_ONE}")]
Interpolation = Annotated[
    list[str], typer.Option("--interpolation", help=f"How images are resized: bilinear, bicubic … {_ONE}")
]
Mean = Annotated[
    list[str], typer.Option("--mean", help=f"Subtracted from each channel of pixels in 0 to 1: 0.5,0.5,0.5. {_ONE}")
]
Std = Annotated[list[str], typer.Option("--std", help=f"Each channel is then divided by this. {_ONE}")]
_EMBEDDING = "in retrieval: penultimate, output, or the last layer's path"
Embeddings = Annotated[list[str], typer.Option(
    "--embedding", metavar="WHICH", help=f"What a model outputs {_EMBEDDING}. {_EACH}"
)]  # fmt: skip
Embedding = Annotated[
    str | None, typer.Option("--embedding", metavar="WHICH", help=f"What the model outputs {_EMBEDDING}.")
]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Measure the teacher on the data.")]
Data = Annotated[str | None, typer.Option("--data", help=_DATA)]
PlanData = Annotated[
    str | None, typer.Option("--data", help=f"{_DATA} Without it the plan is structural: reviewable, not runnable.")
]
GateData = Annotated[str | None, typer.Option("--data", help=f"{_DATA} For the parity gate; without it, noise.")]
TrainData = Annotated[str, typer.Option("--data", help=_DATA)]
TaylorData = Annotated[str | None, typer.Option("--data", help=f"What criteria look at. {_DATA}")]

# plans
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN|RUN_DIR", help="A plan written by `fxdistill plan`, or a run directory.")
]
PlanOrRun = Annotated[Path, typer.Argument(metavar="PLAN|RUN_DIR", help="A plan, or a run directory.")]
PlanOutput = Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")]
Dry = Annotated[
    bool,
    typer.Option("--dry", help="Write nothing; estimate a run's time and memory from a few steps of each stage."),
]
HowTaught = Annotated[str, typer.Option(
    "--method", autocompletion=names("method", between="+"),
    help="How the student is taught: {methods}. Names compose: indistill+kd."
)]  # fmt: skip
HowTaughtAfter = Annotated[str | None, typer.Option(
    "--method", autocompletion=names("method", between="+"),
    help="How the smaller model is taught, by a method of `fxdistill methods` but cascade. Names compose: "
    "indistill+kd. Default: kd; pkt for retrieval.",
)]  # fmt: skip
TaskName = Annotated[str, typer.Option("--task", autocompletion=names("task"), help="What is predicted: {tasks}.")]
TeacherOutput = Annotated[str | None, typer.Option("--teacher-output", help=OUTPUT_OF.format("teacher"))]
StudentOutput = Annotated[str | None, typer.Option("--student-output", help=OUTPUT_OF.format("student"))]
PrintAfter = Annotated[
    list[str], typer.Option("--print-after", metavar="PASS", help="Show what a pass made; repeatable.")
]
OtherTask = Annotated[
    str | None,
    typer.Option("--task", autocompletion=names("task"), help="What is predicted: {tasks}. Default: as the run says."),
]
Pairs = Annotated[
    list[str], typer.Option("--pair", help="T=S: this pair must be used; node or module paths; repeatable.")
]
Forbidden = Annotated[list[str], typer.Option("--forbid", help="T=S: this pair must not be used; repeatable.")]
Widths = Annotated[Align, typer.Option("--align", help=_ALIGN)]
KeepElsewhere = Annotated[float | None, typer.Option(
    "--keep", min=0, max=1,
    help="With --align shrink: share of channels to keep where no tap decides. With cascade: the student's share."
)]  # fmt: skip
Assistants = Annotated[int | None, typer.Option("--assistants", help="Levels beside the student. Default: 3.")]
Levels = Annotated[
    str, typer.Option("--levels", metavar="SHARES", help="Share of channels that each level keeps: 0.2,0.47,0.68,1.0.")
]
Spaced = Annotated[
    Spacing | None, typer.Option("--spacing", help="How the levels' shares are spaced. Default: as in the paper.")
]
BudgetOf = Annotated[
    str, typer.Option("--budget", metavar="macs=N|params=N", help="What the student may cost at most: macs=52M.")
]
Nested = Annotated[bool, typer.Option("--nested", help="A level keeps only what the level above it keeps.")]
MaskedBy = Annotated[Threshold | None, typer.Option(
    "--threshold", help="The channels of all layers compete, or each layer keeps the same share. Default: global."
)]  # fmt: skip
MaskedRoundTo = Annotated[int | None, typer.Option(
    "--round-to", min=1, help="Each layer keeps a multiple of this, or all of its channels. Default: 1."
)]  # fmt: skip
Centred = Annotated[
    bool, typer.Option("--centred", help="Scores move by their gradient minus its mean over the layer.")
]
MaskFirst = Annotated[bool | None, typer.Option(
    "--mask-first/--no-mask-first", help="The first layer's channels compete as well. Default: with --budget."
)]  # fmt: skip
ExportLevels = Literal["student", "all"]
WhichLevels = Annotated[
    ExportLevels, typer.Option("--export-levels", help="Export the student alone, or all assistants too.")
]
Hints = Annotated[
    float, typer.Option("--hints", min=0, help="Weight of hints at the last layers: 0.001. Default: none.")
]
HintsAlone = Annotated[
    float, typer.Option("--hints-alone", min=0, help="The same while the student trains alone. Default: none.")
]
Via = Annotated[str | None, typer.Option(
    "--via", metavar="auto|MODEL", callback=there,
    help="An assistant between the two: auto picks one if the gap is large; or your own."
)]  # fmt: skip
ViaEpochs = Annotated[int | None, typer.Option(
    "--via-epochs", min=0, max=1_000_000,
    help="Epochs in which it first learns from the teacher. Default: as --epochs; for a trained MODEL none."
)]  # fmt: skip
ViaFactory = Annotated[str | None, typer.Option("--via-factory", help=_FACTORY.format("--via "))]
ViaArgument = Annotated[list[str], typer.Option("--via-arg", help=_ARGUMENT)]
Criterion = Annotated[str | None, typer.Option(
    "--criterion", autocompletion=names("criterion"),
    help="Importance of a channel: {criteria}. Default: the method's own."
)]  # fmt: skip
Epochs = Annotated[int, typer.Option("--epochs", min=1, max=1_000_000, help="Epochs of the main stage.")]
ClassMap = Annotated[Path | None, typer.Option(
    "--class-map",
    help="The model's classes, for data with some of them: a file of one name per line, or a .json of numbers by name."
)]  # fmt: skip
Validation = Annotated[float, typer.Option(
    "--val", min=0, max=0.9,
    help="Share of the training images to set aside: every figure but the last is measured on it."
)]  # fmt: skip
BatchSize = Annotated[int, typer.Option(
    "--batch-size", min=2, max=1 << 20, help="Images per training step at most; all steps have the same number."
)]  # fmt: skip
LearningRate = Annotated[
    float | None, typer.Option("--lr", min=1e-9, max=100, help="Learning rate. Default: the method's own.")
]
WarmUpShare = Annotated[float | None, typer.Option(
    "--warm-up-share", help="Share of all epochs for the method's warm-ups, which come before those of --epochs."
)]  # fmt: skip
KeepEarlier = Annotated[float | None, typer.Option(
    "--keep-earlier",
    help="Keep earlier pairs in a warm-up, with a weight that shrinks by this factor every epoch: 0.7."
)]  # fmt: skip
OnPlateau = Annotated[str | None, typer.Option(
    "--plateau", metavar="SHARE[:EPOCHS]",
    help="End a warm-up whose loss falls by less than this share in so many epochs; the main stage gets what is left."
)]  # fmt: skip
Probed = Annotated[str | None, typer.Option(
    "--probe", metavar="order|lengths", help="What the measured difficulty of the pairs decides about the warm-ups."
)]  # fmt: skip
OptimizerName = Literal["sgd", "adam", "adamw"]
Optimizer = Annotated[
    OptimizerName | None,
    typer.Option("--optimizer", help="Optimiser of the main stage and the control; of both phases of a cascade."),
]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", min=0, help="Weight decay of the main stage and the control.")
]
Momentum = Annotated[
    float | None, typer.Option("--momentum", min=0, help="Momentum of sgd, in the main stage and the control.")
]
WarmUp = Annotated[
    float | None, typer.Option("--warm-up", min=0, help="Epochs over which the main stage's learning rate rises.")
]
Clip = Annotated[
    float | None, typer.Option("--clip", help="Largest norm of the gradient, in the main stage and the control.")
]
Ema = Annotated[float | None, typer.Option(
    "--ema", min=0, help="Evaluate and export a running mean of the weights, of which each step keeps this share."
)]  # fmt: skip
Smoothing = Annotated[
    float | None, typer.Option("--label-smoothing", min=0, max=1, help="Share of a label spread over all classes.")
]
Augment = Annotated[
    str | None,
    typer.Option("--augment", help="E.g. flip,crop:4; known are {augmentations}; none. Default: usual for the data."),
]
LossWeights = Annotated[
    list[str], typer.Option("--weight", metavar="LOSS=NUMBER", help="Weight of a loss: kd=0.9; repeatable.")
]
LossArguments = Annotated[
    list[str],
    typer.Option("--arg", metavar="LOSS.ARGUMENT=VALUE", help="Argument of a loss: kd.temperature=4; repeatable."),
]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="A value of the plan: main.losses.kd.weight=0.5; repeatable."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, max=1000, help="How many seeds to run.")]
_CONTROL = "Also train the student for as long without distillation."
Control = Annotated[bool, typer.Option("--control/--no-control", help=_CONTROL)]
ControlWherePossible = Annotated[
    bool | None, typer.Option("--control/--no-control", help=f"{_CONTROL} Default: where labels alone can teach it.")
]
Recalibrate = Annotated[str, typer.Option(
    "--recalibrate-bn", metavar="auto|off|N",
    help="Estimate BatchNorm statistics anew after training: where they lag behind; never; over N images."
)]  # fmt: skip
TrainingPrecision = Annotated[Precision, typer.Option("--precision", help="Training precision.")]

# runs
RunOutput = Annotated[Path | None, typer.Option(
    "--output", "-o", help="The run directory. Default: run, or the run directory that PLAN is or lies in."
)]  # fmt: skip
Where = Annotated[Device, typer.Option("--device", help="Where to train.")]
Devices = Annotated[
    int | None,
    typer.Option("--devices", min=1, help="How many devices of this machine train together, a process each."),
]
Nodes = Annotated[
    int,
    typer.Option("--nodes", min=1, help="How many machines train together; NODE_RANK in the environment says which."),
]
OtherPrecision = Annotated[
    Precision | None, typer.Option("--precision", help="Instead of the plan's training precision.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run that the directory holds.")]
MoreEpochs = Annotated[
    int, typer.Option("--more-epochs", min=0, max=1_000_000, help="Extend the complete run that the directory holds.")
]
Compile = Annotated[
    Choosing, typer.Option("--compile", help="Train through torch.compile; auto tries it in each stage.")
]
Recording = Literal["auto", "off"]
CudaGraphs = Annotated[
    Recording, typer.Option("--cuda-graphs", help="On a GPU record steps and replay them: auto where that is faster.")
]
Arms = Annotated[str, typer.Option(
    "--arms", metavar="METHODS", autocompletion=names("method", between="+,"),
    help="Methods to train instead, separated by commas; the others are compared with the first, the last is exported.",
)]  # fmt: skip
SeedCount = Annotated[
    int | None, typer.Option("--seeds", min=1, max=1000, help="How many seeds, instead of the plan's.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=1000, help="How many seeds to train at once, in a process each.")
]
Trials = Annotated[int | None, typer.Option("--trials", hidden=True, help="Stop after so many trainings.")]
ChannelsLast = Annotated[
    Choosing, typer.Option("--channels-last", help="Train in channels-last memory: auto where it is faster.")
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Time and trace some steps of every stage, into RUN_DIR/profile.")
]
_FORCE = "although a teacher is at chance"
Cache = Annotated[str, typer.Option(
    "--cache", metavar="auto|off|DIR",
    help="Where to keep what the teacher computes for an image: in memory; nowhere; in a folder for many runs."
)]  # fmt: skip
CacheSize = Annotated[str, typer.Option("--cache-size", metavar="BYTES", help="Size of the cache at most: 500M, 4G.")]
CacheHalf = Annotated[bool, typer.Option("--cache-half", help="Keep the cache in half precision.")]
Force = Annotated[bool, typer.Option("--force", help=f"Run {_FORCE}, or the machine's memory is far too small.")]
ForcePlan = Annotated[bool, typer.Option("--force", help=f"Plan {_FORCE}; `run` then needs --force as well.")]
EvaluateEvery = Annotated[int, typer.Option("--evaluate-every", min=1, help="Epochs between two evaluations.")]
SAVE_EVERY = 30.0
SaveEvery = Annotated[float, typer.Option("--save-every", min=0, help="Seconds between checkpoints.")]
DemoOutput = Annotated[Path, typer.Option("--out", "-o", help="Where to work.")]
