"""Rows of studies: the head, which rarely changes, and the row, which every operation swaps."""

from __future__ import annotations

from blackbox.errors import Conflict, StudyNotFound
from blackbox.study.rows import StudyHead, StudyRow
from blackbox_server.store.verbs.base import Verbs, arguments, columns, insert, names, no_nan, update

INSERT_HEAD, HEAD_ARGUMENTS = insert("heads", StudyHead), arguments(StudyHead)
INSERT_STUDY, STUDY_ARGUMENTS = insert("studies", StudyRow), arguments(StudyRow)
STUDY = f"SELECT {columns(StudyRow)} FROM studies WHERE id = ?"
PUT_STUDY, PUT_STUDY_ARGUMENTS = update("studies", StudyRow, ["id"], [])
HEAD = f"SELECT {columns(StudyHead)} FROM heads WHERE id = ?"
PUT_HEAD, PUT_HEAD_ARGUMENTS = update("heads", StudyHead, ["id", "project", "name"], [])
FIND = f"SELECT {columns(StudyHead)} FROM heads WHERE project = ? AND name = ?"
STUDIES = (
    f"SELECT {columns(StudyHead, 'h.')}, {columns(StudyRow, 's.')} FROM heads h JOIN studies s ON s.id = h.id"
    " WHERE h.id > ?1 AND (?2 IS NULL OR h.project = ?2) ORDER BY h.id LIMIT ?3"
)
DELETE_STUDY = "DELETE FROM heads WHERE id = ?"  # the rest goes by ON DELETE CASCADE


class StudyVerbs(Verbs):
    """Verbs of `Tx` about studies."""

    def insert_study(self, head: StudyHead, row: StudyRow) -> None:
        no_nan(head.created_at, row.cost, row.best_value)
        self._add(INSERT_HEAD, [HEAD_ARGUMENTS(head)], head.id, f'a study named "{head.name}" exists')
        self._add(INSERT_STUDY, [STUDY_ARGUMENTS(row)], head.id, f"the study {row.id} exists")

    def study(self, study: str) -> StudyRow | None:
        found = self._execute(STUDY, (study,)).fetchone()
        return StudyRow(*found) if found else None

    def put_study(self, row: StudyRow) -> None:
        no_nan(row.cost, row.best_value)
        if not self._execute(PUT_STUDY, PUT_STUDY_ARGUMENTS(row)).rowcount:
            raise StudyNotFound(f"there is no study {row.id}")

    def head(self, study: str) -> StudyHead | None:
        found = self._execute(HEAD, (study,)).fetchone()
        return StudyHead(*found) if found else None

    def put_head(self, head: StudyHead) -> None:
        if not self._execute(PUT_HEAD, PUT_HEAD_ARGUMENTS(head)).rowcount:
            if self.head(head.id) is None:
                raise StudyNotFound(f"there is no study {head.id}")
            raise Conflict("a study's name and project do not change")

    def find(self, project: str, name: str) -> StudyHead | None:
        found = self._execute(FIND, (project, name)).fetchone()
        return StudyHead(*found) if found else None

    def studies(self, project: str | None, after: str, limit: int) -> list[tuple[StudyHead, StudyRow]]:
        n = len(names(StudyHead))
        rows = self._execute(STUDIES, (after, project, limit))
        return [(StudyHead(*row[:n]), StudyRow(*row[n:])) for row in rows]

    def delete_study(self, study: str) -> None:
        if not self._execute(DELETE_STUDY, (study,)).rowcount:
            raise StudyNotFound(f"there is no study {study}")
