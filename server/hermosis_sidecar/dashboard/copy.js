// To the clipboard, which a browser gives to safe origins only: whether that went well.

export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
