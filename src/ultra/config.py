"""Settings, one frozen record for each stage. Every field's docstring is its `--help` text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from ultra.common.errors import UltraError

Method = Literal["none", "ppo", "random", "jsrl", "statemask-r", "rice", "ultra-a", "ultra-r", "ultra-ra"]
METHODS: tuple[str, ...] = get_args(Method)


def takes_advice(method: str) -> bool:
    """Whether a method is one of ULTRA's, which use an analyst's advice."""
    return method.startswith("ultra")


def _check(holds: bool, name: str, value: object, needed: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise UltraError(f"--{option} is {value}, but must be {needed}")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347), the same for every method."""

    environments: int = 32
    """Environments that step together."""
    rollout_steps: int = 64
    """Steps of each environment between updates."""
    minibatch: int = 64
    """Samples in a gradient step."""
    epochs: int = 10
    """Passes over each rollout."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    anneal: bool = False
    """Let the learning rate fall linearly to zero."""
    gamma: float = 0.99
    """Discount of future reward for each step."""
    gae_lambda: float = 0.95
    """Decay of the generalised advantage estimate (arXiv 1506.02438)."""
    clip: float = 0.2
    """How far the probability ratio may leave 1."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    value: float = 0.5
    """Weight of the value loss."""
    gradient_norm: float = 0.5
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        for name in ("environments", "rollout_steps", "minibatch", "epochs"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        for name in ("gamma", "gae_lambda"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _check(
            self.samples % self.minibatch == 0,
            "minibatch",
            self.minibatch,
            f"a divisor of environments x rollout-steps = {self.samples}",
        )

    @property
    def samples(self) -> int:
        """Steps in one rollout of all environments."""
        return self.environments * self.rollout_steps


@dataclass(frozen=True)
class CollectConfig:
    """Stage 1: trajectories of the policy."""

    episodes: int = 8
    """Episodes to collect for the analyst."""
    share: float = 0.1
    """At most this share of the round's steps; the finishing round takes an eighth of what is left."""

    def __post_init__(self) -> None:
        _check(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        _check(0 < self.share < 1, "share", self.share, "between 0 and 1")


@dataclass(frozen=True)
class LateConfig:
    """Where a finishing round follows, the best of a training's last policies goes on, not the very last one."""

    policies: int = 8
    """How many of them are compared; 1 takes the last one."""
    share: float = 0.04
    """Share of the budget for comparing them, at most."""

    def __post_init__(self) -> None:
        _check(self.policies >= 1, "policies", self.policies, "at least 1")
        _check(0 < self.share < 1, "share", self.share, "between 0 and 1")


@dataclass(frozen=True)
class AnchorConfig:
    """Training on from an improved policy is held to it, so that what was found is not forgotten."""

    critic_rollouts: int = 5
    """Rollouts in which only the critic is fitted, before the actor moves."""
    noise: float = 1.0
    """Most exploration noise at the start: its standard deviation as a share of half an action's range. With 0.1 a
    policy hardly moves: it forgets little and learns little."""
    weight: float = 1.0
    """Weight of the Kullback-Leibler divergence from the policy with which training began; 0 leaves it out."""
    floor: float = 0.1
    """Share of that weight which stays to the end."""
    anneal_until: float = 1.0
    """Share of training over which the weight falls to its floor, linearly."""
    direction: Literal["reference", "policy"] = "reference"
    """From which distribution the divergence is taken: KL(reference || policy) or KL(policy || reference)."""

    def __post_init__(self) -> None:
        _check(self.critic_rollouts >= 0, "keep.critic_rollouts", self.critic_rollouts, "at least 0")
        _check(self.noise > 0, "keep.noise", self.noise, "positive")
        _check(self.weight >= 0, "keep.weight", self.weight, "at least 0")
        _check(0 <= self.floor <= 1, "keep.floor", self.floor, "between 0 and 1")
        _check(0 < self.anneal_until <= 1, "keep.anneal_until", self.anneal_until, "in (0, 1]")


@dataclass(frozen=True)
class AnalyseConfig:
    """Stage 2: critical states and advice."""

    states: int = 12
    """Critical states to look for, over all episodes."""
    share: float = 0.05
    """The `search` analyst's share of the step budget."""
    candidates: int = 8
    """Plans that `search` compares at each candidate state."""
    rules: float = 0.0
    """Part of that share which `search` spends on rules; the rest finds advice at states."""
    compared: float = 0.5
    """Part of the horizon over which `search` compares: half of it buys twice the advice, and verification looks over
    all of it. Where rewards come late (Pong), 1 finds more that helps."""
    plan_steps: int = 16
    """Longest plan; advice may be up to 16 discrete actions or 30 steps of continuous ones."""
    horizon: int = 64
    """Steps of a simulated branch before the value estimate takes over."""

    def __post_init__(self) -> None:
        _check(self.states >= 1, "states", self.states, "at least 1")
        _check(0 < self.share < 1, "share", self.share, "between 0 and 1")
        _check(0 < self.compared <= 1, "compared", self.compared, "above 0 and at most 1")
        _check(0 <= self.rules <= 1, "rules", self.rules, "between 0 and 1")
        _check(self.candidates >= 2, "candidates", self.candidates, "at least 2")
        _check(1 <= self.plan_steps <= 16, "plan_steps", self.plan_steps, "between 1 and 16")
        _check(self.horizon > self.plan_steps, "horizon", self.horizon, f"longer than a plan ({self.plan_steps})")


@dataclass(frozen=True)
class LLMConfig:
    """Language models as analysts (`--analyst llm:...`, `mailbox:DIR`, `recorded:FILE`)."""

    base_url: Annotated[str, arg(aliases=["--base-url"])] = ""
    """Address of the server's API; needed for `llm:local/MODEL`, for instance http://127.0.0.1:11434/v1."""
    output_mode: Annotated[Literal["native", "tool", "prompted"], arg(aliases=["--output-mode"])] = "native"
    """How JSON is asked for: the provider's own schemas, a tool call, or the prompt alone."""
    budget: Annotated[float, arg(aliases=["--llm-budget"])] = 5.0
    """US dollars that the run may spend; reserved before a request is sent. 0: no limit in money."""
    tokens: Annotated[int, arg(aliases=["--llm-tokens"])] = 2_000_000
    """Tokens, in and out, that the run may spend; the limit that holds where no price is known. 0: no limit."""
    price_input: float = -1.0
    """US dollars for a million input tokens, where the built-in price is missing or wrong."""
    price_output: float = -1.0
    """US dollars for a million output tokens."""
    concurrency: int = 4
    """Requests under way at once."""
    timeout: float = 180.0
    """Seconds for one try."""
    attempts: int = 5
    """Tries of a request that is declined for the moment or lost."""
    longest_wait: float = 120.0
    """Longest wait in seconds that a server may ask for (Retry-After)."""
    max_tokens: int = 8192
    """Longest answer in tokens, reasoning included."""
    temperature: float | None = None
    """Sampling temperature; by default the provider's own."""
    draw: int = 0
    """Which answer of several to the same question; another number asks anew."""
    episode_tokens: int = 2400
    """Length of an episode's text, in estimated tokens."""
    ledger: Annotated[str, arg(aliases=["--ledger"])] = ""
    """File of the ledger; default: `ULTRA_LEDGER`, or the user's own data folder."""
    permits: str = ""
    """Folder of permits that the runs of a study share; together they bound the requests under way."""

    def __post_init__(self) -> None:
        for name in ("budget", "tokens", "longest_wait", "draw"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("concurrency", "attempts", "max_tokens"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.timeout > 0, "timeout", self.timeout, "positive")
        _check(self.episode_tokens >= 300, "episode_tokens", self.episode_tokens, "at least 300")
        one_price = (self.price_input < 0) != (self.price_output < 0)
        _check(not one_price, "price_output", self.price_output, "given together with --llm.price-input")
        _check(
            bool(self.budget or self.tokens), "llm_tokens", self.tokens, "positive where --llm-budget is 0 (no limit)"
        )


@dataclass(frozen=True)
class VerifyConfig:
    """Stage 3: every advice is tried in the simulator before it is trained on."""

    share: Annotated[float, arg(aliases=["--verify-budget"])] = 0.1
    """Share of the step budget for verification, over all rounds."""
    branches: int = 64
    """Most paired branches for one advice."""
    confidence: float = 0.95
    """Confidence of the interval on which the verdict rests."""
    control: bool = False
    """Also try a random plan at every state, for the audit; it takes a third of the verification's budget."""
    recheck: float = 0.01
    """Share of the step budget for trying the advice that is used most again, while training goes on."""

    def __post_init__(self) -> None:
        _check(0 < self.share < 1, "share", self.share, "between 0 and 1")
        _check(self.branches >= 8, "branches", self.branches, "at least 8")
        _check(0 <= self.recheck < 1, "recheck", self.recheck, "in [0, 1)")
        _check(0.5 < self.confidence < 1, "confidence", self.confidence, "between 0.5 and 1")


@dataclass(frozen=True)
class AuditConfig:
    """How good the analyst is: measured beside the refinement, outside its budget of steps."""

    replays: int = 12
    """Replays of explained episodes on which the critical states' fidelity is measured; 0 leaves it out."""

    def __post_init__(self) -> None:
        _check(self.replays >= 0, "replays", self.replays, "at least 0")


@dataclass(frozen=True)
class GuidanceConfig:
    """How advice modulates training (equations 1 and 2 of arXiv 2505.20671)."""

    trust: Annotated[Literal["helps", "all"], arg(aliases=["--trust"])] = "helps"
    """`helps`: only advice that verification found helpful; `all`: the paper's behaviour, unverified."""
    estimator: Annotated[Literal["corrected", "paper"], arg(aliases=["--estimator"])] = "corrected"
    """What overwritten steps do in the update: left out and imitated, or treated as the policy's own."""
    strength: float = 1.0
    """Strength of all modulation at the start; 0 is plain PPO."""
    lam: Annotated[float, arg(name="lambda", aliases=["--lambda"])] = 1.0
    """Lambda of equation 2: scale of the implicit reward."""
    imitation: float = 0.1
    """Weight of the imitation of verified advice (corrected estimator)."""
    anneal_until: float = 0.6
    """Share of training after which modulation has fallen to zero."""
    restart: float = 0.1
    """Probability that a training episode starts from a critical state."""
    radius: float = 0.0
    """Matching distance in standardised facts; 0 calibrates it from consecutive states."""

    def __post_init__(self) -> None:
        _check(0 <= self.strength <= 1, "strength", self.strength, "between 0 and 1")
        _check(self.lam >= 0, "lam", self.lam, "at least 0")
        _check(self.imitation >= 0, "imitation", self.imitation, "at least 0")
        _check(0 < self.anneal_until <= 1, "anneal_until", self.anneal_until, "in (0, 1]")
        _check(0 <= self.restart <= 1, "restart", self.restart, "between 0 and 1")
        _check(self.radius >= 0, "radius", self.radius, "at least 0")


@dataclass(frozen=True)
class JSRLConfig:
    """Jump-start reinforcement learning (`--method jsrl`; arXiv 2204.02372)."""

    guide: float = 1.0
    """The guide's steps of an episode at the start of training, as a share of its mean episode; 0 is plain PPO."""
    stages: int = 10
    """In so many equal parts the guide's steps are taken away."""
    tolerance: float = 0.05
    """A part is taken away when the mean return is within this share of the best so far."""
    window: int = 5
    """Judgements over which the return is averaged; one after each rollout, of ten or more episodes."""
    horizon: Literal["curriculum", "random"] = "curriculum"
    """`curriculum`: as above; `random`: every episode draws the guide's steps anew (JSRL-Random)."""

    def __post_init__(self) -> None:
        _check(self.guide >= 0, "guide", self.guide, "at least 0")
        _check(self.stages >= 1, "stages", self.stages, "at least 1")
        _check(self.tolerance >= 0, "tolerance", self.tolerance, "at least 0")
        _check(self.window >= 1, "window", self.window, "at least 1")


@dataclass(frozen=True)
class StateMaskConfig:
    """StateMask's mask network (`--analyst statemask`, methods `statemask-r` and `rice`; arXiv 2405.03064)."""

    share: float = 0.2
    """Share of the step budget for training the mask network."""
    alpha: float = 0.01
    """Bonus for each step at which the policy is blinded, in units of the task's reward."""
    learning_rate: float = 3e-4
    """Adam's step size for the mask network; PPO's other settings are those of `--ppo`."""

    def __post_init__(self) -> None:
        _check(0 < self.share < 1, "share", self.share, "between 0 and 1")
        _check(self.alpha >= 0, "alpha", self.alpha, "at least 0")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")


@dataclass(frozen=True)
class RiceConfig:
    """RICE (arXiv 2405.03064), and the start states of `random` and `statemask-r`."""

    probability: float = 0.25
    """Probability that a training episode starts from a critical state; 1 for `statemask-r`."""
    bonus: float = 0.01
    """Scale of the exploration bonus (random network distillation, arXiv 1810.12894); 0 for `statemask-r`."""
    learning_rate: float = 1e-3
    """Adam's step size for the network that predicts the random one."""
    episodes: int = 64
    """Episodes from which start states are taken, as far as --collect.share allows."""
    states: int = 0
    """Start states in all; 0 takes one from each episode."""

    def __post_init__(self) -> None:
        _check(0 <= self.probability <= 1, "probability", self.probability, "between 0 and 1")
        _check(self.bonus >= 0, "bonus", self.bonus, "at least 0")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        _check(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        _check(self.states >= 0, "states", self.states, "at least 0")


@dataclass(frozen=True)
class EvaluateConfig:
    """Comparison of the refined policy with the one it started from, on fresh seeds."""

    episodes: int = 20
    """Episodes for each policy."""

    def __post_init__(self) -> None:
        _check(self.episodes >= 2, "episodes", self.episodes, "at least 2")


@dataclass(frozen=True)
class EnvironmentConfig:
    """What a Gymnasium id does not say about an environment."""

    card: Annotated[str, arg(aliases=["--card"])] = ""
    """File that describes the environment; `ultra card ENV_ID` writes one to fill in."""
    module: Annotated[str, arg(aliases=["--env-module"])] = ""
    """Module, or .py file, that registers the environment with Gymnasium when it is imported."""
    kwargs: Annotated[tuple[str, ...], arg(aliases=["--env-kwargs"])] = ()
    """Arguments of the environment, each NAME=VALUE, the value written as in YAML."""

    def __post_init__(self) -> None:
        for item in self.kwargs:
            name, separator, _ = item.partition("=")
            _check(bool(separator) and name.isidentifier(), "env_kwargs", item, "NAME=VALUE")

    def options(self) -> dict[str, object]:
        """What was set, for the function that makes the task."""
        values = {"card": self.card, "module": self.module, "kwargs": self.kwargs}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class RefineConfig:
    """Everything that decides a refinement."""

    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    policy: str = ""
    """The policy to refine: a directory that `ultra train` made, or a zip of Stable-Baselines3 (PPO or A2C)."""
    vecnormalize: str = ""
    """VecNormalize statistics of a zip; by default they are looked for beside it, under the usual names."""
    trust_pickle: bool = False
    """Run the pickle of the statistics, with whatever code it holds, if it cannot be read without."""
    standardize: bool = True
    """While a policy without statistics is trained, scale what it observes and earns; it comes back without."""
    method: Method = "ultra-ra"
    """`none` only evaluates; `ppo` fine-tunes plainly; `jsrl`, `statemask-r`, `rice` and `random` (states) are
    the methods compared with; `ultra-*` use advice on actions, rewards or both."""
    analyst: str = "search"
    """Who reads the episodes: `search` (simulated branches, no language model), `random` (the control), `worst` (an
    adversary, for testing trust), `statemask` (critical states only),
    `llm:PROVIDER/MODEL`, `mailbox:DIR` (any chat window) or `recorded:FILE` (answers of a ledger export)."""
    steps: int = 200_000
    """The whole budget of environment steps: collection, analysis, verification and training."""
    seed: int = 0
    """Seed of everything random."""
    rounds: int = 1
    """How often to collect, analyse and train, dividing the budget evenly."""
    finish: float | None = None
    """Share of the step budget for a finishing round: rules are sought for the trained policy, and those that
    verifiably help become part of its network. By default 0.3 for `search`, if the network takes rules; else 0."""
    sticky: float = 0.0
    """Probability that an Atari console repeats the previous action."""
    threshold: float = 0.0
    """Distance in metres from which on sparse-* tasks reward each step; 0 is the task's default."""
    workers: int = 0
    """Cores for stepping environments; 0 uses all."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    analyse: AnalyseConfig = field(default_factory=AnalyseConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    late: LateConfig = field(default_factory=LateConfig)
    keep: AnchorConfig = field(default_factory=AnchorConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    jsrl: JSRLConfig = field(default_factory=JSRLConfig)
    statemask: StateMaskConfig = field(default_factory=StateMaskConfig)
    rice: RiceConfig = field(default_factory=RiceConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        _check(self.steps >= 1, "steps", self.steps, "at least 1")
        _check(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        _check(self.finish is None or 0 <= self.finish < 1, "finish", self.finish, "in [0, 1)")
        _check(0 <= self.sticky < 1, "sticky", self.sticky, "in [0, 1)")

    @property
    def finishing(self) -> float:
        """Share of the budget for the finishing round, which changes what the policy does; 0 if there is none."""
        if self.method not in ("ultra-a", "ultra-ra") or self.guidance.trust != "helps" or not self.guidance.strength:
            return 0.0
        return (0.3 if self.analyst == "search" else 0.0) if self.finish is None else self.finish

    @property
    def last_round(self) -> int:
        """Number of the last round, the finishing one included."""
        return self.rounds + (self.finishing > 0)

    def finishes(self, number: int) -> bool:
        """Whether a round is the finishing one."""
        return number > self.rounds

    @property
    def round_steps(self) -> int:
        """Each training round's part of the budget."""
        return int((1 - self.finishing) * self.steps) // self.rounds


@dataclass(frozen=True)
class TrainConfig:
    """Training from scratch."""

    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    steps: int = 300_000
    """Environment steps."""
    seed: int = 0
    """Seed of everything random."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic. Images have a convolutional network of fixed shape instead."""
    normalize: bool = True
    """Learn the mean and deviation of observations, and the scale of rewards."""
    sticky: float = 0.0
    """Probability that an Atari console repeats the previous action."""
    threshold: float = 0.0
    """Distance in metres from which on sparse-* tasks reward each step; 0 is the task's default."""
    workers: int = 0
    """Cores for stepping environments; 0 uses all."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
