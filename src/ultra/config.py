"""Settings, one frozen record for each stage. Every field's docstring is its `--help` text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, get_args

from tyro.conf import arg

from ultra.common.settings import Bounds, Settings

Method = Literal["none", "ppo", "random", "jsrl", "statemask-r", "rice", "ultra-a", "ultra-r", "ultra-ra"]
METHODS: tuple[str, ...] = get_args(Method)


USUAL_DISCOUNT = 0.99
"""Where nothing else is said, or known."""


def takes_advice(method: str) -> bool:
    """Whether a method is one of ULTRA's, which use an analyst's advice."""
    return method.startswith("ultra")


MOST = 10**12
"""Steps, tokens or samples, at most."""
LARGEST_SEED = 2**63 - 1
SEED = Bounds(0, LARGEST_SEED)
CORES = Bounds(0, 1024)
EPISODES = Bounds(1, 1_000_000)
PAIRS = Bounds(2, 1_000_000)
"""Episodes of which an interval is made."""
SHARE = Bounds(0, 1, above=True, below=True)
PART = Bounds(0, 1, below=True)
"""A share that may be nothing."""
PROBABILITY = Bounds(0, 1)
RATE = Bounds(0, 1e38, above=True)
"""Of learning: any number in single precision."""
WEIGHT = Bounds(0, 1e9)


@dataclass(frozen=True)
class PPOConfig(Settings):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347), the same for every method."""

    PREFIX = "ppo"

    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "n_envs": "environments",
            "n_steps": "rollout_steps",
            "batch_size": "minibatch",
            "n_epochs": "epochs",
            "clip_range": "clip",
            "ent_coef": "entropy",
            "vf_coef": "value",
            "max_grad_norm": "gradient_norm",
        }
    )
    """Stable-Baselines3's names, which files may use too (`ultra.common.records`)."""

    environments: Annotated[int, Bounds(1, 10_000), arg(aliases=["--ppo.n-envs"])] = 32
    """Environments that step together."""
    rollout_steps: Annotated[int, Bounds(1, 1_000_000), arg(aliases=["--ppo.n-steps"])] = 64
    """Steps of each environment in a rollout."""
    minibatch: Annotated[int, Bounds(1, MOST), arg(aliases=["--ppo.batch-size"])] = 64
    """Samples in a minibatch."""
    epochs: Annotated[int, Bounds(1, 10_000), arg(aliases=["--ppo.n-epochs"])] = 10
    """Passes over each rollout."""
    learning_rate: Annotated[float, RATE] = 3e-4
    """Adam's step size."""
    anneal: bool = False
    """Let the learning rate fall linearly to zero."""
    gamma: Annotated[float | None, PROBABILITY] = None
    """Discount factor; by default the one that the policy was trained with where that is known, else 0.99."""
    gae_lambda: Annotated[float, PROBABILITY] = 0.95
    """Lambda of the generalised advantage estimate (arXiv 1506.02438)."""
    clip: Annotated[float, Bounds(0, 100, above=True), arg(aliases=["--ppo.clip-range"])] = 0.2
    """Clip range of the probability ratio."""
    entropy: Annotated[float, Bounds(0, 1000), arg(aliases=["--ppo.ent-coef"])] = 0.0
    """Weight of the entropy bonus."""
    value: Annotated[float, Bounds(0, 1000), arg(aliases=["--ppo.vf-coef"])] = 0.5
    """Weight of the value loss."""
    gradient_norm: Annotated[float, Bounds(0, 1e9, above=True), arg(aliases=["--ppo.max-grad-norm"])] = 0.5
    """Largest norm of a gradient; larger ones are scaled down to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatch and self.samples % self.minibatch:
            self.refuse("minibatch", self.minibatch, f"a divisor of environments x rollout-steps = {self.samples}")

    @classmethod
    def from_sb3(
        cls,
        *,
        n_envs: int = 32,
        n_steps: int = 64,
        batch_size: int = 64,
        n_epochs: int = 10,
        learning_rate: float = 3e-4,
        gamma: float | None = None,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
    ) -> PPOConfig:
        """The same settings under Stable-Baselines3's names; the defaults are ULTRA's."""
        return cls(
            environments=n_envs,
            rollout_steps=n_steps,
            minibatch=batch_size,
            epochs=n_epochs,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip=clip_range,
            entropy=ent_coef,
            value=vf_coef,
            gradient_norm=max_grad_norm,
        )

    @property
    def discount(self) -> float:
        """Discount of future reward for each step."""
        return USUAL_DISCOUNT if self.gamma is None else self.gamma

    @property
    def samples(self) -> int:
        """Steps in one rollout of all environments."""
        return self.environments * self.rollout_steps


@dataclass(frozen=True)
class CollectConfig(Settings):
    """Stage 1: trajectories of the policy."""

    PREFIX = "collect"

    episodes: Annotated[int, EPISODES] = 8
    """Episodes to collect for the analyst."""
    share: Annotated[float, SHARE] = 0.1
    """At most this share of the round's steps."""


@dataclass(frozen=True)
class LateConfig(Settings):
    """Where programs are used, the best of the last policies of training goes on, not the very last one."""

    PREFIX = "late"

    policies: Annotated[int, Bounds(1, 10_000)] = 8
    """Number of policies to compare; 1 takes the last one."""
    share: Annotated[float, SHARE] = 0.04
    """At most this share of the step budget for comparing them."""


@dataclass(frozen=True)
class AnchorConfig(Settings):
    """Training on from a policy that programs improved: anchored to it, so that nothing is forgotten."""

    PREFIX = "keep"

    critic_rollouts: Annotated[int, Bounds(0, 1_000_000)] = 5
    """Rollouts at the start in which only the critic is fitted."""
    noise: Annotated[float, Bounds(0, 1e9, above=True)] = 1.0
    """Largest initial exploration noise: standard deviation as a share of half an action's range. With 0.1 a policy
    hardly moves: it forgets little and learns little."""
    weight: Annotated[float, WEIGHT] = 1.0
    """Weight of the Kullback-Leibler penalty towards the policy training began with; 0 leaves it out."""
    floor: Annotated[float, PROBABILITY] = 0.1
    """Share of that weight that remains to the end."""
    anneal_until: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Share of training over which the weight falls to its floor, linearly."""
    direction: Literal["reference", "policy"] = "reference"
    """Direction of the divergence: `reference` is KL(reference || policy), `policy` is KL(policy || reference)."""


@dataclass(frozen=True)
class AnalyseConfig(Settings):
    """Stage 2: critical states and advice."""

    PREFIX = "analyse"

    states: Annotated[int, Bounds(1, 10_000)] = 12
    """Critical states to find, over all episodes."""
    share: Annotated[float, SHARE] = 0.05
    """The `search` analyst's share of the step budget."""
    candidates: Annotated[int, Bounds(2, 10_000)] = 8
    """Plans that `search` compares at each candidate state."""
    compared: Annotated[float, Bounds(0, 1, above=True)] = 0.5
    """Part of the horizon over which `search` compares plans: half of it pays for twice the advice, and verification
    uses all of it. Where rewards come late (Pong), 1 finds more that helps."""
    plan_steps: Annotated[int, Bounds(1, 16)] = 16
    """Longest plan of `search`, in steps."""
    horizon: Annotated[int, Bounds(2, 1_000_000)] = 64
    """Steps of a simulated branch before the value estimate takes over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon <= self.plan_steps:
            self.refuse("horizon", self.horizon, f"longer than a plan ({self.plan_steps})")


@dataclass(frozen=True)
class LLMConfig(Settings):
    """Language models as analysts (`--analyst llm:...`, `mailbox:DIR`, `recorded:FILE`)."""

    PREFIX = "llm"

    base_url: Annotated[str, arg(aliases=["--base-url"])] = ""
    """Address of the server's API; needed for `llm:local/MODEL`, for instance http://127.0.0.1:11434/v1."""
    output_mode: Annotated[Literal["native", "tool", "prompted"], arg(aliases=["--output-mode"])] = "native"
    """How JSON is asked for: the provider's own schemas, a tool call, or the prompt alone."""
    budget: Annotated[float, WEIGHT, arg(aliases=["--llm-budget"])] = 5.0
    """US dollars that the run may spend; reserved before a request is sent. 0: no limit in money."""
    tokens: Annotated[int, Bounds(0, MOST), arg(aliases=["--llm-tokens"])] = 2_000_000
    """Tokens, in and out, that the run may spend; the limit that holds where no price is known. 0: no limit."""
    price_input: Annotated[float, Bounds(-1, 1e6)] = -1.0
    """US dollars per million input tokens, where the built-in price is missing or wrong."""
    price_output: Annotated[float, Bounds(-1, 1e6)] = -1.0
    """US dollars per million output tokens."""
    concurrency: Annotated[int, Bounds(1, 1000)] = 4
    """Concurrent requests."""
    timeout: Annotated[float, Bounds(0, 1e6, above=True)] = 180.0
    """Timeout of one attempt, in seconds."""
    attempts: Annotated[int, Bounds(1, 1000)] = 5
    """Attempts at a request that is rate-limited or lost."""
    longest_wait: Annotated[float, Bounds(0, 1e6)] = 120.0
    """Longest wait a server may ask for (Retry-After), in seconds."""
    max_tokens: Annotated[int, Bounds(1, 10_000_000)] = 8192
    """Longest answer in tokens, reasoning included."""
    temperature: Annotated[float | None, Bounds(0, 10)] = None
    """Sampling temperature; by default the provider's own."""
    draw: Annotated[int, Bounds(0, LARGEST_SEED)] = 0
    """Number of the answer to a question that is asked several times; a new number asks again."""
    episode_tokens: Annotated[int, Bounds(300, 10_000_000)] = 2400
    """Length of an episode's text, in estimated tokens."""
    ledger: Annotated[str, arg(aliases=["--ledger"])] = ""
    """File of the ledger; default: `ULTRA_LEDGER`, or the user's own data folder."""
    permits: str = ""
    """Folder of permits shared by the runs of a study, which bound the concurrent requests of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.price_input < 0) != (self.price_output < 0):
            self.refuse("price_output", self.price_output, "given together with --llm.price-input")
        if not self.budget and not self.tokens:
            self.refuse("tokens", self.tokens, "positive where --llm-budget is 0 (no limit)")


@dataclass(frozen=True)
class VerifyConfig(Settings):
    """Stage 3: every suggestion is tried in the simulator before anything is trained on it."""

    PREFIX = "verify"

    share: Annotated[float, SHARE, arg(aliases=["--verify-budget"])] = 0.1
    """Share of the step budget for verifying advice, over all rounds; half of it where programs are asked for."""
    branches: Annotated[int, Bounds(8, 100_000)] = 64
    """Most pairs of branches for one suggestion."""
    confidence: Annotated[float, Bounds(0.5, 1, above=True, below=True)] = 0.95
    """Confidence level of the interval behind a verdict."""
    control: bool = False
    """Also try a random plan at every state, for the audit; takes a third of the verification budget."""
    recheck: Annotated[float, PART] = 0.01
    """Share of the training steps for verifying the most used advice again during training."""


@dataclass(frozen=True)
class ProgramsConfig(Settings):
    """Programs for the whole policy: proposed in turns, raced, tuned, verified and adopted."""

    PREFIX = "programs"

    share: Annotated[float, PART, arg(aliases=["--programs-share"])] = 0.35
    """Share of the step budget for programs; 0 asks for none. Only `ultra-a` and `ultra-ra` with `--trust helps` use
    them, because programs act."""
    ask: Annotated[Literal["auto", "first", "last"], arg(aliases=["--ask"])] = "auto"
    """`first`: programs before training, for a policy that is stuck; `last`: after it, for one that still learns;
    `auto`: decided from the starting policy's learning curve, or from a short training where it has none."""
    turns: Annotated[int, Bounds(1, 20), arg(aliases=["--turns"])] = 3
    """Turns of the conversation with a model or person; after each they are told what became of their programs."""
    structures: bool = True
    """Also race corrections derived from the task's card beside what a language model or a file proposes."""
    verify: Annotated[float, SHARE] = 0.15
    """At least this part of that share is kept for verifying the best programs in fresh whole episodes."""
    adopt: Literal["auto", "graft", "distil", "program"] = "auto"
    """How verified programs become part of the policy: `graft` puts them into its network exactly, `distil` teaches
    them to it (DAgger), `program` keeps them beside it; `auto` tries these in order."""
    distil: Annotated[float, PART] = 0.25
    """Most steps for distilling, as a part of that share; taken from what is left of the budget."""


@dataclass(frozen=True)
class AuditConfig(Settings):
    """How good the analyst is; measured outside the step budget."""

    PREFIX = "audit"

    replays: Annotated[int, Bounds(0, 1_000_000)] = 12
    """Replays of explained episodes for measuring the fidelity of critical states; 0 leaves it out."""


@dataclass(frozen=True)
class GuidanceConfig(Settings):
    """How advice modulates training (equations 1 and 2 of arXiv 2505.20671)."""

    PREFIX = "guidance"
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType({"lambda": "lam"})
    """The name on the command line, which files may use too."""

    trust: Annotated[Literal["helps", "all"], arg(aliases=["--trust"])] = "helps"
    """`helps`: only advice that verification found helpful; `all`: the paper's behaviour, unverified."""
    estimator: Annotated[Literal["corrected", "paper"], arg(aliases=["--estimator"])] = "corrected"
    """How the update treats overwritten steps: `corrected` leaves them out and imitates them, `paper` counts them as
    the policy's own."""
    strength: Annotated[float, PROBABILITY] = 1.0
    """Initial strength of all modulation; 0 is plain PPO."""
    lam: Annotated[float, WEIGHT, arg(name="lambda", aliases=["--lambda"])] = 1.0
    """Lambda of equation 2: scale of the implicit reward."""
    imitation: Annotated[float, WEIGHT] = 0.1
    """Weight of the imitation of verified advice (corrected estimator)."""
    anneal_until: Annotated[float, Bounds(0, 1, above=True)] = 0.6
    """Training progress at which modulation has fallen to zero."""
    restart: Annotated[float, PROBABILITY] = 0.1
    """Probability that a training episode starts from a critical state."""
    radius: Annotated[float, WEIGHT] = 0.0
    """Matching radius in standardised facts; 0 calibrates it from consecutive states."""


@dataclass(frozen=True)
class JSRLConfig(Settings):
    """Jump-start reinforcement learning (`--method jsrl`; arXiv 2204.02372)."""

    PREFIX = "jsrl"

    guide: Annotated[float, Bounds(0, 100)] = 1.0
    """The guide's steps of an episode at the start of training, as a share of its mean episode; 0 is plain PPO."""
    stages: Annotated[int, Bounds(1, 1_000_000)] = 10
    """Number of curriculum stages in which the guide's steps fall to zero."""
    tolerance: Annotated[float, Bounds(0, 100)] = 0.05
    """The next stage begins when the average return is within this share of the best so far."""
    window: Annotated[int, Bounds(1, 1_000_000)] = 5
    """Length of the moving average of returns, in evaluations; each is of the last ten or more episodes."""
    horizon: Literal["curriculum", "random"] = "curriculum"
    """`curriculum`: as above; `random`: the guide's steps are drawn for every episode (JSRL-Random)."""


@dataclass(frozen=True)
class StateMaskConfig(Settings):
    """StateMask's mask network (`--analyst statemask`, methods `statemask-r` and `rice`; arXiv 2405.03064)."""

    PREFIX = "statemask"

    share: Annotated[float, SHARE] = 0.2
    """Share of the step budget for training the mask network."""
    alpha: Annotated[float, WEIGHT] = 0.01
    """Bonus for each step at which the policy is blinded, in units of the task's reward."""
    learning_rate: Annotated[float, RATE] = 3e-4
    """Adam's step size for the mask network; PPO's other settings are those of `--ppo`."""


@dataclass(frozen=True)
class RiceConfig(Settings):
    """RICE (arXiv 2405.03064), and the start states of `random` and `statemask-r`."""

    PREFIX = "rice"

    probability: Annotated[float, PROBABILITY] = 0.25
    """Probability that a training episode starts from a critical state; 1 for `statemask-r`."""
    bonus: Annotated[float, WEIGHT] = 0.01
    """Scale of the exploration bonus (random network distillation, arXiv 1810.12894); 0 for `statemask-r`."""
    learning_rate: Annotated[float, RATE] = 1e-3
    """Adam's step size for the network that predicts the random one."""
    episodes: Annotated[int, EPISODES] = 64
    """Episodes to take start states from, as far as --collect.share allows."""
    states: Annotated[int, Bounds(0, 1_000_000)] = 0
    """Start states in all; 0 takes one from each episode."""


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Comparison of the refined policy with the one it started from, on fresh seeds."""

    PREFIX = "evaluate"

    episodes: Annotated[int, PAIRS] = 20
    """Episodes for each policy."""


@dataclass(frozen=True)
class EnvironmentConfig(Settings):
    """What a Gymnasium id alone does not say about an environment."""

    PREFIX = "env"

    card: Annotated[str, arg(aliases=["--card"])] = ""
    """File that describes the environment; `ultra card ENV_ID` writes one to complete."""
    module: Annotated[str, arg(aliases=["--env-module"])] = ""
    """Module, or .py file, that registers the environment with Gymnasium when it is imported."""
    kwargs: Annotated[tuple[str, ...], arg(aliases=["--env-kwargs"])] = ()
    """Arguments of the environment, each NAME=VALUE with the value as in YAML."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in self.kwargs:
            name, separator, _ = item.partition("=")
            if not separator or not name.isidentifier():
                self.refuse("kwargs", item, "NAME=VALUE")

    def options(self) -> dict[str, object]:
        """What was set, for the function that makes the task."""
        values = {"card": self.card, "module": self.module, "kwargs": self.kwargs}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class RefineConfig(Settings):
    """All settings of a refinement."""

    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    policy: str = ""
    """The policy to refine: a directory that `ultra train` made, a zip of Stable-Baselines3 (PPO or A2C), or
    `shipped:NAME`."""
    vecnormalize: str = ""
    """VecNormalize statistics of a zip; by default they are looked for beside it, under the usual names."""
    trust_pickle: bool = False
    """Run the pickle of the statistics, with whatever code it holds, if it cannot be read without."""
    standardize: bool = True
    """Standardise observations and rewards while training a policy that has no statistics; it comes back without."""
    method: Method = "ultra-ra"
    """`none` only evaluates; `ppo` fine-tunes plainly; `jsrl`, `statemask-r`, `rice` and `random` (states) are
    the methods compared with; `ultra-*` use advice on actions, rewards or both."""
    analyst: str = "search"
    """Who analyses the policy: `search` (simulation, no language model), `random` (the control), `worst` (an adversary,
    for testing trust), `statemask` (critical states only),
    `llm:PROVIDER/MODEL`, `mailbox:DIR` (any chat window), `recorded:FILE` (answers of a ledger export) or
    `programs:FILE` (programs of your own)."""
    steps: Annotated[int, Bounds(1, MOST)] = 200_000
    """The whole budget of environment steps: collection, analysis, verification, programs and training."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    analysis_seed: Annotated[int | None, SEED] = None
    """Seed of the analysis alone: of episodes, critical states, advice, programs and their verification. Runs that
    differ in `seed` then share one analysis of the same policy. Default: the seed."""
    rounds: Annotated[int, Bounds(1, 1000)] = 1
    """Rounds of collecting, analysing and training, each with an equal part of the budget."""
    sticky: Annotated[float, PART] = 0.0
    """Probability that an Atari console repeats the previous action."""
    threshold: Annotated[float, WEIGHT] = 0.0
    """Distance in metres from which on sparse-* tasks reward each step; 0 is the task's default."""
    workers: Annotated[int, CORES] = 0
    """Cores for stepping environments; 0 uses all."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    analyse: AnalyseConfig = field(default_factory=AnalyseConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    late: LateConfig = field(default_factory=LateConfig)
    keep: AnchorConfig = field(default_factory=AnchorConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    programs: ProgramsConfig = field(default_factory=ProgramsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    jsrl: JSRLConfig = field(default_factory=JSRLConfig)
    statemask: StateMaskConfig = field(default_factory=StateMaskConfig)
    rice: RiceConfig = field(default_factory=RiceConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def seed_of_analysis(self) -> int:
        """What everything that the analysis draws comes from."""
        return self.seed if self.analysis_seed is None else self.analysis_seed

    @property
    def uses_programs(self) -> bool:
        """Whether programs are asked for: they act, so a method that changes actions and verifies is needed."""
        verified = self.guidance.trust == "helps" and self.guidance.strength > 0
        return self.method in ("ultra-a", "ultra-ra") and verified and self.programs.share > 0


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Training from scratch."""

    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    steps: Annotated[int, Bounds(1, MOST)] = 300_000
    """Environment steps."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    hidden: tuple[Annotated[int, Bounds(1, 10_000)], ...] = (64, 64)
    """Widths of the hidden layers of actor and critic. Images have a convolutional network of fixed shape instead."""
    normalize: bool = True
    """Learn the mean and deviation of observations, and the scale of rewards."""
    sticky: Annotated[float, PART] = 0.0
    """Probability that an Atari console repeats the previous action."""
    threshold: Annotated[float, WEIGHT] = 0.0
    """Distance in metres from which on sparse-* tasks reward each step; 0 is the task's default."""
    workers: Annotated[int, CORES] = 0
    """Cores for stepping environments; 0 uses all."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True)
class ScoreConfig(Settings):
    """How a policy is scored (`ultra evaluate`)."""

    episodes: Annotated[int, PAIRS] = 20
    """Episodes to play."""
    seed: Annotated[int, SEED] = 0
    """Seed from which the episodes' seeds are drawn."""
    workers: Annotated[int, CORES] = 0
    """Processes; 0 uses all cores."""
