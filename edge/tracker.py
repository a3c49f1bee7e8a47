"""The hands of a camera, frame after frame: follow those that are known, search for those that are not.

A hand is followed by cropping where it should be by now. The finder looks at the whole frame when a hand is missing and
now and then to confirm what is followed and which side it is; while there is room for another hand, at the whole frame
and at closer parts of it by turns. A new hand is published when a second frame shows it too, or at once if it is beyond
doubt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from ..hand.arrays import Array
from ..hand.frames import DepthFrame, HandRoi
from ..hand.messages import WireHand
from .arithmetic import PLAIN, Arithmetic
from .calm import Calm
from .confidence import calibration_of
from .engines import Engine
from .finder import NEAR_M, Finder, Part, closer, open_finder, shows
from .look import Eye, Look, belief
from .person import Person
from .refit import Refit
from .refusals import Refusals
from .track import MOST_M_S, SIDE_DECIDED, Poser, Track
from .visibility import refuted

__all__ = ["STAGES", "Track", "Tracker"]

MAX_HANDS = 2
NEW_WITHIN_M = 1.4  # new hands are not looked for beyond: finder and network have learned them up to 1.35
SEARCH_NS = 60_000_000  # between searches while there is room for another hand
CONFIRM_NS = 300_000_000  # between searches while there is none
SAME_M = 0.08  # a proposal as near as this to a followed hand is that hand
RIVAL_M = 0.04  # two tracks whose centres are nearer than this see one hand
OTHER_SIDE_M = 0.15  # a proposal of the other side is as unlikely to be a missing hand as one so much farther
FAR_OFF_M = 0.05  # a hand this far from where it was looked for is looked at again
# Log-odds of its side that one look gives a hand at most. Where the finder says one, it is right in 98 %.
CROP_VOTES, FINDER_VOTES, PAIR_VOTES = 4.0, 4.0, 3.0
SIDE_VOTES = {"right": FINDER_VOTES, "left": -FINDER_VOTES, "unknown": 0.0}
# Log-odds that what is followed is a hand: to look at it for some frames, to publish it then or at once, to go on.
MAYBE, PUBLISH, SURE, DROP = -1.0, 1.5, 2.5, 0.5
ON_TRIAL, ON_TRIAL_NS = 5, 150_000_000  # frames and time after which a hand that is not believed in is given up
PROBATION_NS = 400_000_000  # for so long a new hand goes when it would not be published any more
UNSEEN = 0.02  # the finder's score of a place it does not propose
REMEMBERED_NS = 5_000_000_000  # a hand that comes back within this keeps its id, side and shape
GUESSED_NS = 75_000_000  # a hand that was not measured is published for so long: many later guesses are wrong
NEVER_NS = -(10**18)
STAGES = ("capture", "find", "crop", "engine", "refit", "publish")


@dataclass
class Tracker:
    """process() one frame at a time; stages_us says what the last one cost."""

    engine: Engine
    finder: Finder = field(default_factory=open_finder)
    smooth: bool = True
    max_hands: int = MAX_HANDS
    confirm: bool = True  # publish a doubtful new hand only when a second frame shows it too
    new_person: Callable[[], Person] = Person
    arithmetic: Arithmetic = PLAIN
    refit: Refit | None = None  # else the arithmetic's own
    stages_us: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    tracks: list[Track] = field(default_factory=list)
    _lost: list[Track] = field(default_factory=list)
    _known: Person | None = None  # the best known one of those that are remembered no more
    _refused: Refusals = field(default_factory=Refusals)
    _next_id: int = 1
    _searched_ns: int = NEVER_NS
    _turn: int = 0  # of all and closer parts
    _t_ns: int = NEVER_NS
    _before_ns: int = NEVER_NS  # of the frame before

    def __post_init__(self) -> None:
        self.refit = self.refit or self.arithmetic.refit()
        self.eye = Eye(self.engine, self.stages_us, self.arithmetic.crop_depth, self.arithmetic.read)
        calibration = calibration_of(self.engine.card.confidence)
        self._poser = Poser(self.refit, calibration, self.smooth, self.arithmetic)

    def process(self, frame: DepthFrame) -> list[WireHand]:
        """The hands of this frame: those measured, and those predicted for a moment and not refuted by it."""
        for stage in STAGES:
            self.stages_us[stage] = 0.0
        if frame.t_ns < self._t_ns:
            self._searched_ns, self._turn = NEVER_NS, 0
            for track in (*self.tracks, *self._lost):
                track.forget_motion(frame.t_ns)
        self._before_ns, self._t_ns = self._t_ns, frame.t_ns
        if any(frame.t_ns - track.t_ns >= REMEMBERED_NS for track in self.tracks):
            self.lose()  # no frames came for long, and nobody said so: whose hand is there now is for looks to say
        looks: dict[Track, Look] = {}
        for track in self.tracks:
            look = self._follow(track, frame)
            if look:
                looks[track] = look
        self._part_rivals(frame, looks)
        for track in list(looks):
            self._heed_look(track, frame, looks)
        self._tell_sides_apart(looks)
        if self._search_is_due(frame, looks):
            self._search(frame, looks)
        for track in list(looks):
            self._heed_side(track, frame, looks)
        self._recognise(frame, looks)
        return self._publish(frame, looks)

    def reset(self) -> None:
        """Forget all hands: the next frame is searched from nothing."""
        self.tracks, self._lost, self._refused = [], [], Refusals()
        self._searched_ns, self._t_ns, self._turn = NEVER_NS, NEVER_NS, 0

    @property
    def person(self) -> Person | None:
        """Whose hand is known best, if any was measured."""
        return _best_known(self._known, *(track.person for track in (*self.tracks, *self._lost)))

    def lose(self) -> None:
        """No frames came for a while: no hand is followed any more, but those that come back soon are known."""
        self._lost += [track for track in self.tracks if track.published]
        self.tracks = []
        self._searched_ns, self._turn = NEVER_NS, 0

    def keep_first(self) -> None:
        """Follow no more hands than max_hands, those with the lowest numbers; the others are lost."""
        ordered = sorted(self.tracks, key=lambda track: (not track.published, track.id))
        self.tracks, others = ordered[: self.max_hands], ordered[self.max_hands :]
        self._lost += [track for track in others if track.published]

    # --- follow

    def _follow(self, track: Track, frame: DepthFrame) -> Look | None:
        """The track's hand where it should be, or None."""
        if track.foreseen_m(frame.t_ns)[2] < NEAR_M:
            return None
        look = self._look_for(track, frame, track.aim(frame.t_ns), calm=track.calm if track.is_still else None)
        if look is None:
            track.aim_m = None  # it may not rest there: the next look is where it should be
        return look

    def _look_for(
        self, track: Track, frame: DepthFrame, centre_m: Array, score: float | None = None, calm: Calm | None = None
    ) -> Look | None:
        """The track's hand at a place (3,) m, or None; where the finder proposes it, it is believed by that score."""
        look = self.eye.look(frame, centre_m, track.is_left, track.size, calm)
        if not look.is_hand or look.centre_m[2] < NEAR_M:
            return None
        if math.dist(look.centre_m, centre_m) > FAR_OFF_M:  # it moved faster than foreseen: look there
            look = self.eye.look(frame, look.centre_m, track.is_left, track.size)
            if not look.is_hand:
                return None
        age_s = max(0.0, (frame.t_ns - track.t_ns) * 1e-9)
        if math.dist(look.centre_m, track.centre_m) > 2 * FAR_OFF_M + MOST_M_S * age_s:
            return None  # no hand is that fast: another one
        if score is not None and belief(look, score) <= PUBLISH:
            return None
        return look

    def _heed_look(self, track: Track, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        """Let the look at a track's own hand vote for its side."""
        look = looks[track]
        votes = look.right_votes
        if abs(track.right_votes) < SIDE_DECIDED:  # seen alone, either view tends to be called what it would be
            votes += self.eye.look(frame, look.centre_m, not track.is_left, track.size).right_votes
        track.vote(votes, CROP_VOTES)
        self._heed_side(track, frame, looks)

    def _part_rivals(self, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        """Of two tracks that see one hand, the one it was foreseen for keeps it."""
        for a in self.tracks:
            for b in self.tracks:
                both = a is not b and a in looks and b in looks
                if both and math.dist(looks[a].centre_m, looks[b].centre_m) < RIVAL_M:
                    del looks[max(a, b, key=lambda t: _surprise(t, frame, looks[t]))]

    def _tell_sides_apart(self, looks: dict[Track, Look]) -> None:
        """Two hands are most often one person's left and right: of two alike the less certain one is doubted."""
        for a in looks:
            for b in looks:
                if a.is_left == b.is_left and abs(a.right_votes) < abs(b.right_votes):
                    a.vote(PAIR_VOTES if b.is_left else -PAIR_VOTES, PAIR_VOTES)

    def _heed_side(self, track: Track, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        """A hand that was outvoted since it was looked at, is looked at as the other side's."""
        look = looks[track]
        if look.crop.mirrored != track.is_left:
            again = self.eye.look(frame, look.centre_m, track.is_left, track.size)
            if again.is_hand:
                looks[track] = again
            else:
                del looks[track]

    # --- search

    def _search_is_due(self, frame: DepthFrame, looks: dict[Track, Look]) -> bool:
        if len(looks) < len(self.tracks):
            return True
        settled = len(self.tracks) >= self.max_hands and all(abs(t.right_votes) > SIDE_DECIDED for t in self.tracks)
        interval_ns = CONFIRM_NS if settled else SEARCH_NS
        return frame.t_ns - self._searched_ns >= interval_ns

    def _search(self, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        self._searched_ns = frame.t_ns
        begun = time.perf_counter()
        part = self._where(frame, looks)
        rois = self.finder(frame, part)
        self.stages_us["find"] += (time.perf_counter() - begun) * 1e6
        if self.finder.judges:
            self._confirm(rois, looks, part)
        for roi in rois:
            if any(_near(look.centre_m, roi, SAME_M) for look in looks.values()):
                continue
            if self._find_again(roi, frame, looks):
                continue
            if len(self.tracks) < self.max_hands and not self._refused.hold(roi, frame.t_ns, self.finder.judges):
                self._begin(roi, frame, looks)

    def _where(self, frame: DepthFrame, looks: dict[Track, Look]) -> Part | None:
        """Where to search while there is room for another hand: in all of the frame and in closer parts of it by turns;
        else, and when a hand is missing, in all."""
        if len(looks) < len(self.tracks) or len(self.tracks) >= self.max_hands:
            return None
        parts, turn = closer(frame.intrinsics), self._turn
        self._turn += 1
        return parts[turn // 2 % len(parts)] if turn % 2 else None

    def _confirm(self, rois: list[HandRoi], looks: dict[Track, Look], part: Part | None) -> None:
        """What the finder says of the followed hands that the part shows: are they any, and of which side; those not
        believed in go."""
        for track in [t for t in self.tracks if t in looks and (not part or shows(part, looks[t].centre_m))]:
            look = looks[track]
            near = [roi for roi in rois if _near(look.centre_m, roi, SAME_M)]
            roi = min(near, key=partial(_distance, look.centre_m), default=None)
            if roi and look is min(looks.values(), key=lambda seen: _distance(seen.centre_m, roi)):
                track.vote(SIDE_VOTES[roi.side], FINDER_VOTES)  # a proposal is of one hand, the nearest
            if roi:
                track.score = roi.score
            track.believe(belief(look, roi.score if roi else UNSEEN))
            on_probation = track.published and self._t_ns - track.begun_ns < PROBATION_NS
            if track.belief < (PUBLISH if on_probation else DROP):
                self._refuse(track, looks)

    def _refuse(self, track: Track, looks: dict[Track, Look]) -> None:
        """It is no hand: follow it no more, and do not look there for a while."""
        self._refused.add(track.centre_m, self._t_ns, track.score, fooled=track.published)
        self.tracks.remove(track)
        looks.pop(track, None)
        if track.published:  # should it be one after all, it keeps its number, and no shape that may be a knee's
            track.person = self.new_person()
            self._lost.append(track)

    def _find_again(self, roi: HandRoi, frame: DepthFrame, looks: dict[Track, Look]) -> bool:
        """Whether the proposal is a hand that is followed but was not seen where it should be."""
        missing = [track for track in self.tracks if track not in looks]
        for track in sorted(missing, key=lambda track: _strangeness(track, roi)):
            reach = SAME_M + MOST_M_S * max(0.0, (frame.t_ns - track.t_ns) * 1e-9)
            if _near(track.centre_m, roi, reach):
                look = self._look_for(track, frame, roi.centre_m, roi.score)
                if look and not _is_seen(look, looks):
                    looks[track] = look
                    self._heed_look(track, frame, looks)
                    return True
        return False

    def _begin(self, roi: HandRoi, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        """Look closer at a proposal, as at a right and as at a left hand; a hand gets a track."""
        if roi.centre_m[2] > NEW_WITHIN_M:
            return
        first = self.eye.look(frame, roi.centre_m, roi.side == "left")
        if not first.is_hand or first.centre_m[2] < NEAR_M:
            self._refused.add(roi.centre_m, frame.t_ns, roi.score)
            return
        if _is_seen(first, looks):
            return
        other = self.eye.look(frame, first.centre_m, not first.crop.mirrored)
        votes = first.right_votes + other.right_votes + 2 * SIDE_VOTES[roi.side]
        look = self.eye.look(frame, first.centre_m, votes < 0)
        believed = belief(look, roi.score)
        if believed < MAYBE:
            return
        track = Track(
            look.centre_m, frame.t_ns, votes, begun_ns=frame.t_ns, score=roi.score, person=self.new_person(),
            calm=Calm(self.arithmetic.calmed), smoother=self.arithmetic.smoother(),
        )  # fmt: skip
        alone = not any(other.published for other in self.tracks)
        track.belief = believed
        track.published = believed > (SURE if self.confirm else DROP if alone else PUBLISH)
        self.tracks.append(track)
        looks[track] = look

    def _recognise(self, frame: DepthFrame, looks: dict[Track, Look]) -> None:
        """Say which hands are to be published. A new one may be one lost a while ago, or not seen where it should be,
        of its side, or of the other while either's is in doubt: it takes that one's number and shape, and its votes if
        they are for the same side. It may be the other hand after all, which is for looks to say."""
        old = [t for t in self._lost if frame.t_ns - t.t_ns >= REMEMBERED_NS]
        self._lost = [t for t in self._lost if t not in old]
        self._known = _best_known(self._known, *(t.person for t in old))
        for track, look in looks.items():
            track.published = track.published or (track.measured > 0 and track.belief > PUBLISH)
            if not track.published or track.id:
                continue
            missing = [t for t in self.tracks if t not in looks and t.published]
            same = [t for t in (*self._lost, *missing) if _may_be_one(t, track)]
            if same:
                was = min(same, key=partial(_difference, track, look.centre_m))
                (self._lost if was in self._lost else self.tracks).remove(was)
                track.id, track.person = was.id, was.person
                if was.is_left == track.is_left:
                    track.right_votes += 0.5 * was.right_votes

    # --- publish

    def _publish(self, frame: DepthFrame, looks: dict[Track, Look]) -> list[WireHand]:
        begun = time.perf_counter()
        hands: list[WireHand] = []
        for track in list(self.tracks):
            if track in looks:
                hand = self._poser.measured(track, frame, looks[track])
                tried = track.measured > ON_TRIAL and frame.t_ns - track.begun_ns >= ON_TRIAL_NS
                if tried and not track.published:
                    self._refuse(track, looks)
            else:
                guess = self._poser.predicted(track, frame)
                if guess is None or not track.published:
                    self.tracks.remove(track)
                    if track.published:
                        self._lost.append(track)
                    continue
                hand = guess
            young = frame.t_ns - track.t_ns <= GUESSED_NS or track.t_ns == self._before_ns
            if track.published and (track in looks or (young and not refuted(frame, hand.pose.joints_m))):
                number = self._id_of(track)
                hands.append(hand if hand.id == number else replace(hand, id=number))
        self.stages_us["refit"] += (time.perf_counter() - begun) * 1e6
        return hands

    def _id_of(self, track: Track) -> int:
        """A hand gets its number when it is first published."""
        if track.id == 0:
            track.id, self._next_id = self._next_id, self._next_id + 1
        return track.id


def _is_seen(look: Look, looks: dict[Track, Look]) -> bool:
    """Whether it shows a hand that another look shows already."""
    return any(math.dist(look.centre_m, other.centre_m) < RIVAL_M for other in looks.values())


def _distance(centre_m: Array, roi: HandRoi) -> float:
    return math.dist(centre_m, roi.centre_m)


def _near(centre_m: Array, roi: HandRoi, reach_m: float) -> bool:
    return _distance(centre_m, roi) < reach_m


def _strangeness(track: Track, roi: HandRoi) -> float:
    """How unlike a track a proposal is: how far away, and on the other side of the body."""
    return _distance(track.centre_m, roi) + OTHER_SIDE_M * (roi.side == ("right" if track.is_left else "left"))


def _may_be_one(a: Track, b: Track) -> bool:
    """Whether two tracks can be of one hand: of one side, as far as that is decided."""
    return a.is_left == b.is_left or min(abs(a.right_votes), abs(b.right_votes)) < SIDE_DECIDED


def _difference(track: Track, centre_m: Array, other: Track) -> float:
    """How far a track was from where another is seen, and on the other side of the body."""
    gap = math.dist(other.centre_m, centre_m)
    return gap + OTHER_SIDE_M * (other.is_left != track.is_left)


def _best_known(*persons: Person | None) -> Person | None:
    """Of persons, one whose shape is held, or else the one that was looked at most."""
    return max((p for p in persons if p), key=lambda p: (p.held, p.frames), default=None)


def _surprise(track: Track, frame: DepthFrame, look: Look) -> float:
    return math.dist(track.foreseen_m(frame.t_ns), look.centre_m)
