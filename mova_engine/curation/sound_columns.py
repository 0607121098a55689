"""How clips' sound is corrected when they are read: the columns sound_shift (s) and gain_db of each clip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mova_engine.config.sound_correction import SoundCorrection
from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.filter_expression import FilterExpression, parse_filter, parse_number

if TYPE_CHECKING:
    import pyarrow as pa

_LOUDNESS = "lufs"
# Shifts in whole microseconds, gains in hundredths of a decibel: what a manifest shows.
_SHIFT_DIGITS, _GAIN_DIGITS = 6, 2


@dataclass(frozen=True)
class SoundColumns:
    """Settings that were read. shift, where: of the offset; None: sound is not moved."""

    settings: SoundCorrection
    shift: FilterExpression | None
    where: FilterExpression | None

    @classmethod
    def of(cls, settings: SoundCorrection) -> "SoundColumns":
        """MovaError for an expression that cannot be read."""
        if not settings.shift:
            return cls(settings, None, None)
        where = parse_filter("sound.shift_where", settings.shift_where)
        return cls(settings, parse_number("sound.shift", settings.shift), where)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that they read. They are measured where filters, marks or --also ask for them."""
        read = [column for each in (self.shift, self.where) if each is not None for column in each.columns]
        return tuple(dict.fromkeys([*read, *([] if self.settings.lufs is None else [_LOUDNESS])]))

    def of_table(self, table: "pa.Table") -> "dict[str, pa.Array | pa.ChunkedArray]":
        """{"sound_shift": seconds by which sound is moved, later where positive; "gain_db": decibels by which it is
        made louder}, float64 of each row; 0 where nothing is to be done or the number for it is missing.
        """
        import pyarrow as pa

        nothing = pa.repeat(pa.scalar(0.0), table.num_rows)
        return {"sound_shift": self._shift(table, nothing), "gain_db": self._gain(table, nothing)}

    def _shift(self, table: "pa.Table", nothing: Any) -> Any:
        if self.shift is None or self.where is None:
            return nothing
        pc, settings = compute(), self.settings
        by = pc.round(self.shift.of_table(table), _SHIFT_DIGITS)
        size = pc.abs(by)
        trusted = pc.and_(pc.greater_equal(size, settings.least_shift), pc.less_equal(size, settings.most_shift))
        used = pc.and_kleene(trusted, self.where.of_table(table))
        return pc.if_else(pc.fill_null(used, False), by, nothing)

    def _gain(self, table: "pa.Table", nothing: Any) -> Any:
        if self.settings.lufs is None or _LOUDNESS not in table.column_names:
            return nothing
        import pyarrow as pa

        pc, most = compute(), self.settings.most_gain
        loudness = table[_LOUDNESS].cast(pa.float64())
        gain = pc.round(pc.subtract(pa.scalar(self.settings.lufs), loudness), _GAIN_DIGITS)
        limited = pc.min_element_wise(pc.max_element_wise(gain, -most, skip_nulls=False), most, skip_nulls=False)
        return pc.fill_null(limited, 0.0)
