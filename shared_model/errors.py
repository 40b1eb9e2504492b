"""The errors that MammoFed raises on purpose, each with a stable exit code; raised everywhere, shown by the CLI.

Every message says what was found, what was expected and what to do. Exit codes are a contract with scripts: a number is
never given a new meaning.
"""

from __future__ import annotations


class MammoFedError(Exception):
    """Root of all expected failures.

    Args:
        problem: what is wrong, naming the file and the field.
        found: the offending value, already free of identities.
        expected: what would have been right.
        remedy: what the reader should do next.
    """

    exit_code = 1

    def __init__(
        self, problem: str, *, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.problem, self.found, self.expected, self.remedy = problem, found, expected, remedy
        super().__init__(problem)

    def __str__(self) -> str:
        parts = [self.problem]
        if self.found is not None:
            parts.append(f"found: {self.found}")
        if self.expected is not None:
            parts.append(f"expected: {self.expected}")
        if self.remedy is not None:
            parts.append(f"to do: {self.remedy}")
        return "; ".join(parts)


class ConfigError(MammoFedError):
    """A configuration value is missing, unknown or contradicts another one."""

    exit_code = 10


class ContractError(MammoFedError):
    """A clinical table breaks the data contract."""

    exit_code = 20


class LeakageError(ContractError):
    """A column would tell the model the outcome of the very read that it is to make."""

    exit_code = 21


class ImagingError(MammoFedError):
    """A DICOM file cannot become a view tensor. `reason` is a stable code for counting and quarantine."""

    exit_code = 22

    def __init__(
        self, problem: str, *, reason: str, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.reason = reason
        super().__init__(problem, found=found, expected=expected, remedy=remedy)


class CohortError(MammoFedError):
    """A prepared cohort is absent, damaged, of another schema, or cannot serve the study."""

    exit_code = 23


class SourceError(MammoFedError):
    """A PACS or web archive cannot be reached, or refuses what is asked of it; what came so far is kept."""

    exit_code = 24


class ProtocolError(MammoFedError):
    """A study protocol is malformed, of another release, or not the one that was approved."""

    exit_code = 30


class MessageError(MammoFedError):
    """A message breaks its declared schema or bounds."""

    exit_code = 31


class WeightsError(MammoFedError):
    """Model weights are absent, damaged, or not those that the protocol names."""

    exit_code = 32


class SignatureError(MammoFedError):
    """A signature or a key is malformed, does not fit, or is not that of the party that it should be."""

    exit_code = 33


class PrivacyError(MammoFedError):
    """A request would break the privacy promise; nothing was trained."""

    exit_code = 40


class BudgetExhaustedError(PrivacyError):
    """The site cannot afford the round; it abstains."""

    exit_code = 41


class EgressError(PrivacyError):
    """What was about to leave a site is not what its protocol and policy let go; it stays. A request may have been
    computed, and charged, all the same."""

    exit_code = 44


class PromiseBrokenError(PrivacyError):
    """An audit found that what leaves a site is not what was promised."""

    exit_code = 45


class TrainerError(MammoFedError):
    """The trainer service cannot be reached or failed on a request."""

    exit_code = 50


class RoundError(MammoFedError):
    """A round could not be closed."""

    exit_code = 60


class QuorumError(RoundError):
    """Too few sites contributed; the study is INCOMPLETE, never a success."""

    exit_code = 61


class ReplacementError(MammoFedError):
    """A new model was not shown to be as good as the one that it was to replace; the old one stays in use."""

    exit_code = 62


class StorageError(MammoFedError):
    """A durable record could not be written or read back (disk full, damaged file)."""

    exit_code = 70


class AuditError(MammoFedError):
    """An audit log was changed, cut or rewritten. `line` is the first bad line, counted from 1; 0: not one line."""

    exit_code = 71

    def __init__(
        self, problem: str, *, line: int = 0, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.line = line
        super().__init__(f"line {line}: {problem}" if line else problem, found=found, expected=expected, remedy=remedy)


class DoctorError(MammoFedError):
    """A doctor found a check red; the table says which and what to do."""

    exit_code = 80


class BundleError(MammoFedError):
    """An air-gap bundle cannot be made, or is not the one that was made."""

    exit_code = 81


class PassportError(MammoFedError):
    """A model passport is malformed, or a file beside it is not the one that it names."""

    exit_code = 82


class ExportError(MammoFedError):
    """An exported model is not the model that it was made from; nothing was written."""

    exit_code = 83


class EnrolmentError(MammoFedError):
    """An invitation, a certificate request or a confirmation is refused."""

    exit_code = 90


class CertificateError(MammoFedError):
    """A certificate does not admit its holder. `reason` is a stable code of `shared_model.certificates.REFUSALS`."""

    exit_code = 91

    def __init__(
        self, problem: str, *, reason: str, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.reason = reason
        super().__init__(problem, found=found, expected=expected, remedy=remedy)


class TunnelError(MammoFedError):
    """The coordinator cannot be reached through the tunnel; `reason` is a stable code of `client.deploy.tunnel`."""

    exit_code = 92

    def __init__(
        self, problem: str, *, reason: str, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.reason = reason
        super().__init__(problem, found=found, expected=expected, remedy=remedy)


class ControlError(MammoFedError):
    """The control service refuses a call or cannot be reached; `reason` is a stable code of `shared_model.control`."""

    exit_code = 93

    def __init__(
        self, problem: str, *, reason: str, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.reason = reason
        super().__init__(problem, found=found, expected=expected, remedy=remedy)
