// A member's own page: how its line to the coordinator is, and what it is not told.
import { byId, setText } from "./dom.js";
import { clock } from "./words.js";

export function showMember(member) {
  const lost = byId("lost"), note = byId("member");
  lost.hidden = !member || member.up;
  note.hidden = !member;
  if (!member) return;
  setText(lost, member.up ? "" : `No connection to the coordinator since ${clock(member.since, true)} (${member.words}). What stands here is from before.`);
  setText(note, `Seen by ${member.name}. ${member.hidden}`);
}
