"""Links: what a worker and the server agreed on, and the steps of a contribution over it.

The stream and the unary calls share these, so a gradient means the same whichever way it came.
"""

from dataclasses import dataclass, field, replace

from hermosis import wire
from hermosis.coding import Codec
from hermosis.v1 import gradient_pb2
from hermosis.wire import Dtype, is_plain_name
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.checks import MAX_WORKER_ID_BYTES
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.rounds import Tell, WorkerRecord
from hermosis_server.engine.session import Session, require_next
from hermosis_server.errors import InvalidRequest, LayoutMismatch
from hermosis_server.records import AckLevel, Commit, GradientChunk, ParametersOn, Reply, ReplyWish, SegmentOffer
from hermosis_server.rpc.codec import enums
from hermosis_server.rpc.codec.coded import CodedAnswers
from hermosis_server.rpc.segments import Segment, StreamSegments

RESUME_BYTES = 4 << 20  # what came of a gradient is kept for a worker that comes back, where it is as much
PLAIN = Codec()
MAX_OPEN_GRADIENTS = 64  # begun, not yet committed


@dataclass(slots=True)
class Link:
    """A worker's part in a session.

    Attributes:
      lasts:     whether it is a stream's, and not of one call.
      segments:  of its stream.
      unanswered: commits and pulls whose answers have not been written.
      segment:   memory shared with the worker, where there is any.
      gradients: on their way, by sequence.
      refused:   sequences of which everything is ignored up to the commit.
      gradient_codec: of what the worker sends.
      coded:     makes what goes back smaller; None where it goes back as it is.
    """

    session: Session
    worker: WorkerRecord
    generation: int
    gradient_dtype: Dtype
    wish: ReplyWish
    ack_level: AckLevel
    lasts: bool = False
    unanswered: int = 0
    segments: StreamSegments | None = None
    segment: Segment | None = None
    gradients: dict[int, Assembler] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    gradient_codec: Codec = PLAIN
    coded: CodedAnswers | None = None

    def close(self) -> None:
        """Forgets the gradients on their way, but for a large one that the worker may come back to. Called once."""
        for sequence, gradient in self.gradients.items():
            begun = gradient.prefix * self.gradient_dtype.itemsize
            if begun >= RESUME_BYTES and sequence == self.worker.sequence + 1 and gradient.staging is not None:
                self.session.keep(self.worker, sequence, gradient, self.generation)
            else:
                gradient.release()
        self.gradients.clear()
        self.refused.clear()
        if self.coded is not None:
            self.coded.close()
        if self.segment is not None and self.segments is not None:
            self.segments.let_go(self.segment)
            self.segment = None
        self.session.leave(self.worker, ended=self.lasts)

    def refuse(self, sequence: int) -> None:
        """Drops a gradient on its way and ignores the rest of it.

        Raises:
          InvalidRequest: too many were refused and none committed; whoever sends this does not read the answers.
        """
        gradient = self.gradients.pop(sequence, None)
        if gradient is not None:
            gradient.release()
        if len(self.refused) >= MAX_OPEN_GRADIENTS:
            raise InvalidRequest(f"{len(self.refused)} gradients were refused and none of them committed")
        self.refused.add(sequence)

    def attach(self, segments: StreamSegments, offer: SegmentOffer) -> None:
        """Uses the memory that the worker offers, if it is what it should be, and nothing is coded."""
        if self.is_coded:
            return
        itemsizes = self.gradient_dtype.itemsize, self.wish.dtype.itemsize
        places = wire.segment_places(self.session.spec.layout.parameter_count, *itemsizes)
        self.segments, self.segment = segments, segments.attach(offer, places)

    def receive(self, engine: Engine, chunk: GradientChunk) -> None:
        """Puts a chunk in its place; the first of a gradient takes memory for the whole of it."""
        gradient = self.gradients.get(chunk.sequence)
        if gradient is None:
            self.session.require_generation(self.generation)
            if len(self.gradients) >= MAX_OPEN_GRADIENTS:
                raise InvalidRequest(f"{len(self.gradients)} gradients are begun and not committed; commit them first")
            if not self.session.answered_before(self.worker, chunk.sequence):
                require_next(chunk.sequence, self.worker, begun=max(self.gradients, default=0))
            gradient = self._resumed(chunk)
            if gradient is None:
                gradient = engine.intake.begin_gradient(self.session, self.worker, chunk.sequence, self.gradient_dtype)
            self.gradients[chunk.sequence] = gradient
        self.session.hear(self.worker)
        gradient.add(
            offset=chunk.offset,
            dtype=chunk.dtype,
            crc32=chunk.crc32,
            payload=chunk.payload,
            saved_bytes=chunk.saved_bytes,
        )

    def _resumed(self, chunk: GradientChunk) -> Assembler | None:
        """The unfinished gradient that a chunk goes on with. Any other chunk begins the gradient anew."""
        unfinished = self.worker.unfinished
        if unfinished is None or unfinished.sequence != chunk.sequence:
            return None
        going_on = self.session.resumable(self.worker, self.gradient_dtype)
        if going_on is None or chunk.offset != going_on.gradient.prefix:
            self.worker.give_up(unfinished)
            return None
        self.worker.unfinished = None
        return going_on.gradient

    @property
    def is_coded(self) -> bool:
        """Whether payload goes either way under a codec."""
        return self.coded is not None or not self.gradient_codec.is_plain

    @property
    def gradient_place(self) -> memoryview:
        """Where the worker puts its gradient in shared memory; InvalidRequest when there is none."""
        if self.segment is None:
            raise InvalidRequest("no segment is attached to this handle; send the gradient in chunks", field="segment")
        return self.segment.gradient

    @property
    def answer_place(self) -> memoryview | None:
        """Where answers go in shared memory; None when there is none."""
        return None if self.segment is None else self.segment.answer

    def commit(
        self, engine: Engine, commit: Commit, answer: Tell, *, silent: bool = False, place: memoryview | None = None
    ) -> None:
        """Counts a gradient whose chunks have all come; `answer` is called with its fate.

        Args:
          silent: wants no vector, whatever was agreed.
          place:  shared memory in which the step may write the answer.

        Raises:
          HermosisError: it was refused, and is forgotten.
        """
        gradient = self.gradients.pop(commit.sequence, None)
        if gradient is None:
            raise InvalidRequest(
                f"sequence {commit.sequence} was committed before any chunk of it came", field="commit.sequence"
            )
        try:
            self.session.require_generation(self.generation)
        except BaseException:
            gradient.release()
            raise
        wish = replace(self.wish, reply=Reply.NONE) if silent else self.wish
        if place is not None:
            wish = replace(wish, place=place)
        engine.intake.contribute(self.session, self.worker, commit, wish, gradient, answer, level=self.ack_level)

    def contribute(
        self, engine: Engine, commit: Commit, chunk: GradientChunk, answer: Tell, *, silent: bool = False
    ) -> None:
        """Receives a gradient that came whole, and commits it. One that is refused is forgotten at once."""
        try:
            self.receive(engine, chunk)
        except BaseException:
            abandoned = self.gradients.pop(chunk.sequence, None)
            if abandoned is not None:
                abandoned.release()
            raise
        self.commit(engine, commit, answer, silent=silent)


def open_link(
    engine: Engine,
    *,
    session_id: str,
    worker_id: str,
    generation: int,
    layout_digest: bytes,
    ack_level: int,
    reply: int,
    reply_dtype: int,
    gradient_dtype: int,
    lasts: bool = True,
    gradient_codec: Codec = PLAIN,
    reply_codec: Codec = PLAIN,
) -> Link:
    """Checks what a worker asks for; the numbers are those of the wire. The caller closes the link.

    Args:
      session_id: as the engine knows it: the caller has seen to it that it is the worker's.

    Raises:
      SessionNotFound, StaleGeneration, LayoutMismatch, InvalidRequest, QuotaExceeded.
    """
    session = engine.session(session_id)
    session.require_generation(generation)
    if layout_digest and layout_digest != session.spec.layout.digest:
        raise LayoutMismatch(
            f"the worker's layout has digest {layout_digest[:32].hex()}, session {session_id} has "
            f"{session.spec.layout.digest.hex()}; compare names, shapes, dtypes and their order",
            field="layout_digest",
        )
    if not is_plain_name(worker_id, MAX_WORKER_ID_BYTES):
        raise InvalidRequest(
            f"worker_id {worker_id[:80]!r} is not 1 to {MAX_WORKER_ID_BYTES} bytes without control characters",
            field="worker_id",
        )
    on_worker = session.spec.parameters_on is ParametersOn.WORKER
    wanted = enums.known(Reply, reply, default=Reply.INCREMENT if on_worker else Reply.PARAMETERS, field="reply")
    if on_worker and wanted is Reply.PARAMETERS:
        raise InvalidRequest(
            f"the workers of session {session_id} hold its parameters; ask for INCREMENT or NONE", field="reply"
        )
    level = enums.known(AckLevel, ack_level, default=AckLevel.APPLIED, field="ack_level")
    if level is AckLevel.DURABLE:
        engine.intake.require_durability(session)
    wire_dtype = enums.dtype(gradient_dtype, field="gradient_dtype")
    wish = ReplyWish(reply=wanted, dtype=enums.dtype(reply_dtype, field="reply_dtype"))
    if gradient_codec.is_lossy and wire_dtype is not Dtype.FLOAT32:
        raise InvalidRequest(
            f"{gradient_codec.kind.name} codes FLOAT32, gradient_dtype is {wire_dtype.name}",
            field="gradient_codec.kind",
        )
    coded = _coded_answers(session, wish, reply_codec)
    try:
        worker = session.join(worker_id)  # last: whoever joins must leave
    except BaseException:
        if coded is not None:
            coded.close()
        raise
    return Link(
        session=session,
        worker=worker,
        generation=session.generation,
        gradient_dtype=wire_dtype,
        wish=wish,
        ack_level=level,
        lasts=lasts,
        gradient_codec=gradient_codec,
        coded=coded,
    )


def _coded_answers(session: Session, wish: ReplyWish, codec: Codec) -> CodedAnswers | None:
    """What makes answers smaller; the caller closes it."""
    if codec.is_plain:
        return None
    if codec.is_lossy and (wish.dtype is not Dtype.FLOAT32 or wish.reply is Reply.INCREMENT):
        raise InvalidRequest(
            f"{codec.kind.name} codes changes of FLOAT32 parameters that the server holds; the reply is "
            f"{wish.reply.name} in {wish.dtype.name}",
            field="reply_codec.kind",
        )
    return CodedAnswers(codec, session.spec.layout.parameter_count, session.budget)


def link_for_call(
    engine: Engine, name: str, request: gradient_pb2.PushRequest, *, reply: int, reply_dtype: int = 0
) -> Link:
    """The link of a unary call to the session of a name, which lasts as long as the call."""
    return open_link(
        engine,
        session_id=name,
        worker_id=request.worker_id,
        generation=request.generation,
        layout_digest=request.layout_digest,
        ack_level=request.ack_level,
        reply=reply,
        reply_dtype=reply_dtype,
        gradient_dtype=request.gradient.dtype,
        lasts=False,
    )
