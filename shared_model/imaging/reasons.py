"""Stable reason codes for films that are refused, with words and a remedy; raised by imaging, counted by client/ingest.

A code is a contract with quarantine lists and reports: it is never given a new meaning. Messages name no file and no
person. A header value is repeated only where it stands in a closed vocabulary, because a free text may hold a name.
"""

from __future__ import annotations

from collections.abc import Collection

from shared_model.errors import ImagingError

REASONS: dict[str, tuple[str, str]] = {
    "unreadable": ("the film file cannot be opened", "check permissions and the disk; copy the file again"),
    "not_dicom": ("the file is not a DICOM Part 10 file", "export it from the PACS again as DICOM, not as a web page"),
    "truncated": ("the file ends before its pixels do", "copy or export the file again"),
    "damaged_header": ("the DICOM header cannot be parsed", "export the file again"),
    "too_large": ("the film is larger than the limit", "raise imaging.max_pixels or max_bytes if the film is genuine"),
    "unsupported_syntax": ("the transfer syntax is not read", "export as Explicit VR Little Endian or JPEG 2000"),
    "not_mammography": ("the object is no digital mammogram", "leave it out; correct Modality if it is a mammogram"),
    "for_processing": ("a raw For Processing image", "send the For Presentation image of the same exposure"),
    "multi_frame": ("several frames (tomosynthesis or cine)", "send the two-dimensional view"),
    "not_monochrome": ("not one sample of grey a pixel", "send the original, not a colour screen capture"),
    "no_pixels": ("the object has no pixels", "leave it out"),
    "unsupported_bits": ("the pixel format is not read", "send 8 to 16 bits stored in 8 or 16 allocated"),
    "no_patient_id": ("PatientID is empty", "export the film with its patient id"),
    "no_uid": ("SOPInstanceUID or StudyInstanceUID is missing", "export the film again"),
    "no_view": ("no header field says which view it is", "set ViewPosition to CC or MLO"),
    "other_view": ("a view that the model does not use", "nothing: CC and MLO views are used"),
    "view_conflict": ("header fields disagree on the view", "correct ViewPosition or ViewCodeSequence"),
    "not_full_view": ("a spot, magnified, cropped or otherwise partial view", "nothing: full views are used"),
    "no_laterality": ("no header field says which breast it is", "set ImageLaterality to L or R"),
    "laterality_conflict": ("header fields disagree on the breast", "correct ImageLaterality"),
    "no_spacing": ("no physical pixel spacing", "set ImagerPixelSpacing, or declare the scanner's spacing"),
    "implausible_spacing": ("the pixel spacing cannot be a mammogram's", "correct ImagerPixelSpacing"),
    "field_too_small": ("the film shows too small a field", "send the full film, not a cut-out"),
    "unsupported_orientation": ("the film does not run along the breast", "correct PatientOrientation"),
    "orientation_conflict": (
        "the chest wall lies on the other side than the header says",
        "check PatientOrientation and ImageLaterality: the breast may be labelled as the other one",
    ),
    "no_orientation": ("the side of the chest wall cannot be told", "set PatientOrientation"),
    "implant": ("a breast implant, which outshines the tissue", "nothing: films with implants are left out"),
    "burned_in": ("text is burned into the pixels", "send the film without burned-in annotation"),
    "burned_in_unknown": (
        "the header does not say that the pixels are free of text",
        "set BurnedInAnnotation to NO, or, after looking at some films, film_policy.burned_in to look",
    ),
    "text_in_breast": ("text or a marker lies over the breast", "send the film without burned-in annotation"),
    "secondary_capture": (
        "a secondary capture",
        "set film_policy.secondary_capture to accept where films were scanned",
    ),
    "screen_save": ("a screen save", "send the mammogram itself"),
    "derived_image": ("an image made from other images", "send the primary image"),
    "synthetic_2d": (
        "computed from a tomosynthesis",
        "send the exposed view, or set film_policy.synthetic_2d to accept",
    ),
    "damaged_lut": ("a lookup table or window in the header is damaged", "export the film again"),
    "codestream_mismatch": ("the compressed image is not of the size that the header says", "export the film again"),
    "undecodable": ("the compressed pixels cannot be decoded", "export the film again, uncompressed if need be"),
    "constant_pixels": ("all pixels are equal", "leave the film out or export it again"),
    "few_greys": ("the breast has too few different greys", "export the film again with all its bits"),
    "flat_window": ("the film's window shows no contrast in the breast", "correct WindowCenter and WindowWidth"),
    "no_breast": ("no breast could be told from the background", "leave the film out or check the pixels"),
    "inverted": ("the background is bright: the polarity is wrong", "correct PhotometricInterpretation"),
    "decoder_crashed": ("the decoder died on this film", "export the film again, uncompressed"),
    "timed_out": ("the film took too long", "export the film again, uncompressed"),
}

SECTIONS: dict[str, str] = {
    "unreadable": "", "not_dicom": "PS3.10 7.1", "truncated": "PS3.5 7.1 and A.4", "damaged_header": "PS3.5 7.1",
    "too_large": "", "unsupported_syntax": "PS3.5 10", "not_mammography": "PS3.3 C.7.3.1 and A.26",
    "for_processing": "PS3.3 C.8.11.7", "multi_frame": "PS3.3 A.55", "not_monochrome": "PS3.3 C.7.6.3.1.2",
    "no_pixels": "PS3.3 C.7.6.3", "unsupported_bits": "PS3.5 8.1.1", "no_patient_id": "PS3.3 C.7.1.1",
    "no_uid": "PS3.3 C.12.1", "no_view": "PS3.3 C.8.11.7", "other_view": "PS3.16 CID 4014",
    "view_conflict": "PS3.3 C.8.11.7", "not_full_view": "PS3.16 CID 4015", "no_laterality": "PS3.3 C.8.11.7",
    "laterality_conflict": "PS3.3 C.7.3.1 and C.8.11.7", "no_spacing": "PS3.3 C.8.11.3",
    "implausible_spacing": "PS3.3 C.8.11.3", "field_too_small": "PS3.3 C.8.11.4",
    "unsupported_orientation": "PS3.3 C.7.6.1.1.1", "orientation_conflict": "PS3.3 C.7.6.1.1.1",
    "no_orientation": "PS3.3 C.7.6.1.1.1", "implant": "PS3.3 C.8.11.7", "burned_in": "PS3.3 C.7.6.1",
    "burned_in_unknown": "PS3.3 C.7.6.1", "text_in_breast": "PS3.15 E.3.1", "secondary_capture": "PS3.3 A.8.1",
    "screen_save": "PS3.3 C.8.6.1", "derived_image": "PS3.3 C.7.6.1.1.2", "synthetic_2d": "PS3.3 C.7.6.1.1.2",
    "damaged_lut": "PS3.3 C.11.1 and C.11.2", "codestream_mismatch": "PS3.5 8.2", "undecodable": "PS3.5 8.2",
    "constant_pixels": "", "few_greys": "", "flat_window": "PS3.3 C.11.2", "no_breast": "",
    "inverted": "PS3.3 C.7.6.3.1.2", "decoder_crashed": "", "timed_out": "",
}  # fmt: skip
"""Where the standard says what a film broke, for whoever has to talk to the maker; "" where a rule is ours."""


class FilmRefusedError(ImagingError):
    """A film that was refused after its header could be read.

    patient_id: whose film it is, for the site's own pseudonym; no part of the message, "" where the header has none.
    """

    def __init__(self, error: ImagingError, *, patient_id: str) -> None:
        super().__init__(
            error.problem, reason=error.reason, found=error.found, expected=error.expected, remedy=error.remedy
        )
        self.patient_id = patient_id


def refuse(reason: str, *, found: object = None, expected: object = None) -> ImagingError:
    """The error for one reason code; `found` must already be free of identities."""
    problem, remedy = REASONS[reason]
    return ImagingError(problem, reason=reason, found=found, expected=expected, remedy=remedy)


def known_term(value: str, vocabulary: Collection[str]) -> str:
    """`value` where the vocabulary has it, else words that repeat nothing of it."""
    if not value:
        return "nothing"
    return value if value in vocabulary else "a value outside the vocabulary"
