"""Users for scoring: their rows after fold-in of recent events, and the followers of these events.

Reads change nothing. An event of a user's history has the weight weight * decay(visits - the
event's visit) with the half-life `history.half_life`. With rule SOLVE, the user's row is solved for
these events given the present items, in `FOLD_SWEEPS` sweeps from the present row. This
approximates the row that results if everything else had been learned before it. A user without
events gets the mean of all users' rows, if Gram matrices exist (`solve.unobserved` above 0). A user
with a start (`tables/start.py`) is folded in towards it, and has it as the row without events. A
user with a bag of features and without events keeps her row, which is what they say
(`solve/features/__init__.py`). With counts, item i gets, in addition to its score,

    counts.weight * sum_j r_j count(j -> i) / (sqrt(n_j n_i) + shrinkage) / sum_j r_j

over the last `span` events j, newest first, in float32 and in this order. r_j are the weights of
the events, and n the numbers of events of the items. Users repeat items, the sooner the more
recently they had them (Anderson, Kumar, Tomkins, Vassilvitskii, WWW 2014). So item i also gets

    counts.repeat * sum_j weight * decay(visits - the event's visit)

over all remembered events j of i itself with a value above 0, oldest first, with the half-life
`counts.half_life`.

A caller can supply events of a user. They replace the user's history.

A mix of experts

A mix replaces settings that nobody can know beforehand: how fast interests change, how much the
items that others took next say, and how much popularity says. All experts read the same tables.
They score every item i for a user, given the user's remembered events:

    0, 1, 2  x_h . y_i for the user's row x_h, folded in with the half-lives `HALF_LIVES` in visits
             as described above; 0 means that all events weigh the same
    3, 4, 5  the gains from counts, where event j has the weight of a half-life of
             `COUNT_HALF_LIVES`
    6        repeats: sum of weight * decay(age) over the events of i itself with values above 0,
             with the half-life `counts.half_life`
    7        popularity p_i, all along and lately, which is the bias of the item (below)
    8        the last items of similar users (below), with `mix.neighbors` S above 0
    9        random walks (below), with `mix.walk_users` W above 0

A user without events, start and bag has the mean of all users' rows as x_h. A user without events
has no gains.

Each expert's scores are standardised over the n items that have rows: z = (s - mean) * scale, where
scale is 1 / (standard deviation), or 0 if the variance is at most `VARIANCE_MIN`. No scan is
needed. With the Gram matrix G of the items and their sum g (`solve/__init__.py`), the mean of x .
y_i is x . g / n, and its mean square is x' G x / n. Gains are 0 except for a few items. The sums of
p and p**2 are state. The score of a user in group u is

    sum_e w[u, e] z_e / (w[u, 7] * scale_7), from e = 0 on

The divisor is the same for all items of a user. So the rank is that of sum_e w[u, e] z_e, and the
bias of an item enters with the factor 1: top-k lists need no other kernels. The group of a user is
0, 1, 2 or 3 for less than 1, 5 or 20 remembered events, or more (`GROUP_STARTS`). That of a user
with a start is 3.

Similar users. Their last events say what comes next, which pays most in short sessions (Ludewig,
Jannach, Evaluation of Session-based Recommendation Algorithms, 2018). Let j = 0, 1, ... be the
user's last `SIMILAR.span` remembered events, newest first, and r_j = weight * decay(j) with the
half-life `SIMILAR.half_life`. Those with r_j of 0, or a value not above 0, are left out. For each
j the last `SIMILAR.users` events of j's item are visited, newest first. Each other user v with a
value above 0 among them gets s_v += r_j, once for j. The S users with the largest s_v are the
neighbours, by s_v, and equal ones in the order in which they were found.

Of each neighbour v the last `SIMILAR.events` events are visited, newest first, without those whose
values are not above 0. Let q be the first place whose item is that of a j. If there is none, v says
nothing. An item i at place p, at its first place, gains

    (s_v * weight) * decay(|p - q|)

with the half-life `NEIGHBOR_DISTANCE`. With `mix.neighbor_roots` its gain is the square root of
the sum of these. Places count all events. So a read visits at most
`SIMILAR.span` * `SIMILAR.users` + S * `SIMILAR.events` events. Gains are float32.

Random walks. Where neither the order nor the time of events says much, items are near each other if
the same users had them, however long ago. A walk goes from the user to her items, to users of these
items, and to their items. Its probability is corrected for popular items (RP3beta, Paudel,
Christoffel, Newell, Bernstein, ACM TiiS 7(1), 2016, with beta = 1/2). Let n be the number of all
events of an item or a user. The sums are those of similar users, with

    r_j = (weight * `WALK_UNIT`) / sqrt(n_j + 1)

for the user's last `WALKS.span` events j. The last `WALKS.users` events of their items are visited,
and W users stay. All items of the last `WALKS.events` events of such a user v gain
(s_v / (n_v + 1)) * weight, whether or not an item of a j is among them. The gain of item i is the
sum of these, divided by sqrt(n_i + 1). The `WALK_ITEMS` items with the largest gains stay, and of
equal ones those that were found first, by user and from the newest event on. Others gain nothing.

Weights. They start at `WEIGHT_START`, those of walks at `WALK_START`, those of users without events
at 0, and those of popularity at `POPULARITY_START`. So lists begin near most-popular, while the
tables know little. If rows get a start before the first event, the tables know much: the weight of
popularity in group 3 becomes `POPULARITY_MIN`, and those of the folded-in rows in group 0 become
`WEIGHT_START`.

The weights are learned from predictions that are made before the event is learned. Let E events be
learned before a record. Fresh event t of the record is predicted if its value is above 0, its item
had a row before the record, and draw(t, 0, c) = 0 with c = min(max(E // `PREDICTED_SCHEDULE`,
`mix.predicted_first`), `PREDICTED_MAX`), or c = 1 if E is below `mix.early_events`. The prediction
uses the tables before the record, and in addition the user's earlier events in the record. Events
of the same time as event t, unless it is 0, are not used: a basket comes as a whole. The candidates
are the event's item; then the items with gains from counts, from similar users or from walks, by
row; then others. Those of the user's remembered events are left out. The others are all further
rows by number if n is at most `CANDIDATES`, and else those among draw(t, 1 + j, n) for j below
`CANDIDATES`. A candidate c has the odds v_c. They are 1, but (number of further rows) / (number of
drawn candidates) for a drawn one. Items with gains rank high, so a sample would rarely have the
ones that compete with the event's item. The probability of the item is

    S_c = sum_e w[u, e] z_e(c), from e = 0 on;  q_c = v_c exp(float32(S_c - max S));
    P = q_item / sum_c q_c

One step of gradient ascent on 2 sqrt(P) is

    d_e = (sum_c q_c z_e(c)) / (sum_c q_c) - z_e(item)
    w[u, e] = max(w[u, e] - rate * clamp(d_e sqrt(P), `STEP_MAX`), floor_e)

floor_e is 0, and `POPULARITY_MIN` for popularity. The rate is `mix.learning_rate`. Steps of a young
model are longer: with F = `mix.early_events` above 0 the rate is this times

    1 + (`EARLY_RATE` - 1) min(1, max(0, (3 F - E) / (2 F)))

so it is `EARLY_RATE` times as high for the first F events, and falls until event 3 F. sqrt(P) is
the likelihood of Ferrari and Yang (Maximum Lq-likelihood estimation, Annals of Statistics 2010)
with q = 1/2. An event that no expert foresees hardly counts. The logarithm of P would follow these
events to popularity, because it raises a hopeless item from a far to a less far rank, and lists end
after their first ranks.

If the item is new to the user, all experts but the repeats take this step. Then, for any item, the
repeats take a step with 1 in place of sqrt(P) and with `REPEATS_RATE` times the rate. Its
candidates are also the other items of the user's last `OWN_MAX` remembered events, by row, and
their odds are 1. So the weight of repeats falls where nobody repeats.

Popularity. After a record is learned, each fresh event with a value above 0 adds its weight to the
count a_i of its item, and p_i = log(1 + a_i), where log(x) is e + m - 1 for x = m * 2**e with m in
[1, 2). Before a record, if at least as many events as items came since the last time, all counts
are multiplied by float32(2 ** -`DECAY_EXPONENT`), and sums are added again in the order of rows.

Recent popularity. With `mix.recent_half_life` h above 0, an item has a second count r_i. The same
events add to it, and a decay multiplies it by float32(2 ** (-1 / h)). So it halves after h times as
many events as there are items. Then

    p_i = log(1 + a_i) + b log(1 + r_i)

The blend b is float32 and one for all users, because the bias of an item is. It starts at
`mix.recent_start`. It is learned from the events whose items are new to their users, after the
weights have taken their step. With w[u, 7] and q_c from before that step and l_c = log(1 + r_c),

    d = ((sum_c q_c l_c) / (sum_c q_c) - l_item) (w[u, 7] scale_7) sqrt(P)
    B = min(max(B - (rate `BLEND_RATE`) clamp(d, `STEP_MAX`), 0), `BLEND_MAX`)

A decay sets b to float32(B) before it makes all p_i again.

Baskets. With `mix.baskets`, events without times can be a basket, too. A *run* is a longest row of
fresh events of one user and with time 0 that stand side by side in a record. Its events are
predicted like events of one time: as one visit, and without each other. Let R be the number of runs
in the records before, without a run at the start of a record, and R' the number of those whose user
had a row before the record. Runs are taken for baskets if R' is above 0 and R' * `RETURN_SHARE` is
at least R. So they are not if a log lists all events of one user after the other. Histories do not
know runs: in them each of these events is a visit. If all events of the records before that have a
time have the same time T, it says nothing: predictions take events with the time T for events
without a time, and so does the count of runs.

Starts. A record of factors before the first event sets the counts of the m items with a start to
what the factors say. Let t_i = max(x . y_i, 0), where x is the sum of the users' rows in the Gram
matrix. It is the expected number of the users who take the item. a_i = t_i * (m / sum t). So all
counts together are m events, and new events soon outweigh them. The terms of the dot are float64
and are added from column 0 on. r_i is a_i. p_i follows, and the sums of p are added again.

Newcomers. An item without events is a newcomer if it has a vector (`solve/prior/__init__.py`) or a
bag of features (`solve/features/__init__.py`). Its popularity is unknown, so this expert abstains:
when the item gets the first of them, it gets the popularity of the mean item, p_i = float32(sum p /
n), and the count a_i with p_i = log(1 + a_i). In float32, a = (p - e + 1) * 2**e - 1 for e =
floor(p). With recent popularity, both counts are the a of p = float32(sum p / n / (1 + b)). The
counts decay like all others. So an item that is offered and that nobody takes sinks as fast as one
that nobody takes any more. Only items with events are in n and in the sums of p. A newcomer joins
them with its first event: its p is added to the sums after the record is learned and before its
events count. If what a newcomer has of them is removed, its counts and p are 0.

The dots are those of scores (float32). Sums, odds and weights are float64. Counts a and r and p are
float32. Sums run from left to right. The section `mix` has the weights by group and expert, then
the events since the last decay, sum p and sum p**2, then b and B with recent popularity, then w[u,
8] by group with similar users, then R, R' and T with baskets or walks, then w[u, 9] by group with
walks. T is 0 before the first time, and -1 after the second one. draw(t, d, c) is
`random.draw_below` with the key of `random.MIX_DOMAIN`."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from livefactor_kernels.history import decays
from livefactor_kernels.spec.model import Mix, ModelSpec

HALF_LIVES = (0.0, 6.0, 1.5)
"""Half-lives of the folded-in rows, in visits."""
FOLDS = len(HALF_LIVES)
COUNT_HALF_LIVES = (0.0, 6.0, 0.5)
"""Half-lives of the events that followers come from, in visits."""
COUNTS = FOLDS
"""The first of the experts with gains from counts."""
REPEATS = COUNTS + len(COUNT_HALF_LIVES)
POPULARITY = REPEATS + 1
NEIGHBORS = POPULARITY + 1
"""The expert of similar users. In the section, the weights of those before it stand together."""
WALK = NEIGHBORS + 1
"""The expert of random walks."""
EXPERTS = WALK + 1


class Reach(NamedTuple):
    """How far similar users, or walks, are followed.

    Attributes:
        span: number of the user's last events.
        users: number of last events of each of their items.
        events: number of last events of each user who stays.
        half_life: of the user's own events, in events, or 0.
    """

    span: int
    users: int
    events: int
    half_life: float


SIMILAR, WALKS = Reach(8, 64, 32, 1.5), Reach(32, 32, 64, 0.0)
NEIGHBOR_DISTANCE = 6.0
"""Half-life of a neighbour's events beside the shared one, in events."""
WALK_ITEMS, WALK_UNIT = 256, np.float32(2.0**20)
"""The unit keeps the variance of gains from walks far above `VARIANCE_MIN`."""
GROUP_STARTS = (1, 5, 20)
GROUPS = len(GROUP_STARTS) + 1
WEIGHT_START, POPULARITY_START, POPULARITY_MIN, STEP_MAX = 0.1, 0.6, 0.02, 3.0
WALK_START, EARLY_RATE = 0.3, 2.5
VARIANCE_MIN = 1e-12
CANDIDATES, OWN_MAX, REPEATS_RATE = 500, 32, 0.1
PREDICTED_SCHEDULE, PREDICTED_MAX = 1024, 256
DECAY_EXPONENT = 0.1
DECAY = np.float32(0.933033)
"""float32(2 ** -DECAY_EXPONENT)."""

MIX = "mix"
"""Name of the section."""
SINCE, SUM, SQUARES = GROUPS * NEIGHBORS, GROUPS * NEIGHBORS + 1, GROUPS * NEIGHBORS + 2
"""Places in the section, after the weights."""
BLEND, LEARNED_BLEND = SQUARES + 1, SQUARES + 2
"""Places of b and B, with recent popularity."""
NEIGHBOR_WEIGHTS = LEARNED_BLEND + 1
"""Place of the weights of similar users, by group."""
RUNS, RETURNS, ONE_TIME = (NEIGHBOR_WEIGHTS + GROUPS + place for place in range(3))
"""Places of R, R' and T, with baskets."""
WALK_WEIGHTS = ONE_TIME + 1
"""Place of the weights of walks, by group."""
BLEND_MAX, BLEND_RATE = 8.0, 10.0
RETURN_SHARE = 64
"""Runs are baskets if one in so many is that of a user who comes back."""


def kinds_of(spec: ModelSpec) -> int:
    """Counts of an item: one, or two with recent popularity."""
    return 2 if spec.mix.recent_half_life else 1


def recent_decay(spec: ModelSpec) -> np.float32:
    """The factor on the second count of an item when all counts decay."""
    factor: np.float32 = decays(spec.mix.recent_half_life)[1]
    return factor


class Moments(NamedTuple):
    """What standardises the scores of an expert: their mean, and 1 / (standard deviation) or 0."""

    mean: float
    scale: float


def moments(total: float, squares: float, count: float) -> Moments:
    """The moments of `count` scores, given their sum and the sum of their squares."""
    mean = total / count
    variance = squares / count - mean * mean
    return Moments(mean, 1.0 / float(np.sqrt(variance)) if variance > VARIANCE_MIN else 0.0)


def initial(spec: ModelSpec) -> np.ndarray:
    """The section of a new model, float64[35, 37, 41, 44 or 48]."""
    section = np.zeros(BLEND if kinds_of(spec) == 1 else NEIGHBOR_WEIGHTS)
    section[BLEND:] = np.float32(spec.mix.recent_start)
    weights = section[: GROUPS * NEIGHBORS].reshape(GROUPS, NEIGHBORS)
    weights[1:] = WEIGHT_START
    weights[:, POPULARITY] = POPULARITY_START
    if spec.mix.neighbors:
        section = np.append(section, np.full(GROUPS, WEIGHT_START))
        section[NEIGHBOR_WEIGHTS] = 0.0
    if spec.mix.baskets or spec.mix.walk_users:
        section = np.append(section, np.zeros(3))
    if spec.mix.walk_users:
        section = np.append(section, np.full(GROUPS, WALK_START))
        section[WALK_WEIGHTS] = 0.0
    return section


def group_of(events: int, has_start: bool = False) -> int:
    """The group of a user with so many remembered events."""
    return GROUPS - 1 if has_start else bisect_right(GROUP_STARTS, events)


def weights_of(section: np.ndarray, group: int) -> np.ndarray:
    """The weights float64[NEIGHBORS] of a group, without that of similar users. It is a view."""
    return section[group * NEIGHBORS : (group + 1) * NEIGHBORS]


def predicted_share(events: np.ndarray, mix: Mix) -> np.ndarray:
    """c of the semantics: of so many events one is predicted, after `events` events. uint64[m]."""
    later = np.clip(events // PREDICTED_SCHEDULE, mix.predicted_first, PREDICTED_MAX)
    share: np.ndarray = np.where(events < mix.early_events, 1, later).astype(np.uint64)
    return share


def rate_after(events: int, mix: Mix) -> np.float64:
    """The rate of steps after `events` events."""
    rate, early = np.float64(np.float32(mix.learning_rate)), mix.early_events
    if events >= 3 * early:
        return rate
    return rate * (1.0 + (EARLY_RATE - 1.0) * min(1.0, (3 * early - events) / (2 * early)))
