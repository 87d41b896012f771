// Server-sent events out of a stream of bytes, as far as the sidecar uses them: an event's name, id and data.

export async function* events(stream) {
  let rest = "";
  for await (const text of texts(stream)) {
    const blocks = (rest + text).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = { event: "message", id: "", data: [] };
      for (const line of block.split("\n")) {
        const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
        if (field === "event") found.event = value;
        if (field === "id") found.id = value;
        if (field === "data") found.data.push(value);
      }
      if (found.data.length) yield { ...found, data: found.data.join("\n") };
    }
  }
}

// Not every browser lets one iterate over a stream.
async function* texts(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
