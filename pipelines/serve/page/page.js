// The page at /. The same file is the audio worklet of the live tab: there, only the processor is defined.
"use strict";

if (typeof registerProcessor === "function") {
  registerProcessor("microphone", class extends AudioWorkletProcessor {
    process([[samples]]) {
      if (samples) this.port.postMessage(Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767).buffer);
      return true;
    }
  });
} else {
  start();
}

function start() {
  const byId = (id) => document.getElementById(id);
  const say = (id, text) => { if (byId(id).textContent !== text) byId(id).textContent = text; };
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  let key = sessionStorage.getItem("key") || "";
  let speech = null;    // a File or Blob
  let current = null;   // the video that is being made or shown
  let urls = [];        // object URLs to give back

  // -- the server ----------------------------------------------------------------------------------------------------

  async function ask(path, options = {}) {
    const headers = key ? { "X-API-Key": key } : {};
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    if (answer.status === 401) askForKey();
    throw Object.assign(new Error(problem.detail || `The server answered ${answer.status}.`), { status: answer.status });
  }

  const json = async (path, options) => (await ask(path, options)).json();

  // A player cannot send the key: with one, the file is fetched first.
  async function playable(path) {
    if (!key) return path;
    const url = URL.createObjectURL(await (await ask(path)).blob());
    urls.push(url);
    return url;
  }

  function askForKey() {
    const hidden = byId("key-form").hidden;
    byId("key-form").hidden = false;
    if (hidden) byId("key").focus();
  }

  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key").value;
    sessionStorage.setItem("key", key);
    byId("key-form").hidden = true;
    refresh();
  });

  // -- people --------------------------------------------------------------------------------------------------------

  async function refresh() {
    try {
      const templates = await json("/v1/templates");
      showTemplates(templates);
      const waiting = templates.filter((template) => template.state === "preparing").length;
      say("ready", waiting ? `Preparing ${waiting} of ${templates.length} people …` : "Ready.");
      if (waiting) setTimeout(refresh, 1000);
    } catch (error) {
      say("ready", error.status === 401 ? "The key is missing or wrong." : error.message);
    }
  }

  function showTemplates(templates) {
    if (!templates.length) return;
    const before = document.querySelector("input[name=template]:checked")?.value;
    const focused = document.activeElement?.name === "template" ? document.activeElement.value : null;
    byId("templates").replaceChildren(...templates.map((template) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), {
        type: "radio", name: "template", value: template.name, disabled: template.state === "failed",
      });
      const note = document.createElement("small");
      note.textContent = template.state === "ready" ? `${template.width}×${template.height}, ${template.seconds.toFixed(1)} s`
        : template.state === "failed" ? template.problem?.detail || "failed" : "being prepared …";
      label.append(radio, " ", template.name, note);
      return label;
    }));
    const radios = [...document.querySelectorAll("input[name=template]:not(:disabled)")];
    const chosen = radios.find((radio) => radio.value === before) || radios[0];
    if (chosen) chosen.checked = true;
    radios.find((radio) => radio.value === focused)?.focus();
    const options = templates.filter((template) => template.state === "ready").map((template) => new Option(template.name));
    byId("live-template").replaceChildren(...options);
  }

  byId("add-button").addEventListener("click", async () => {
    const file = byId("video").files[0];
    const name = byId("name").value.trim();
    if (!file || !name) return say("add-status", "Choose a video, and give it a name.");
    const form = new FormData();
    form.append("name", name);
    form.append("video", file);
    byId("add-button").disabled = true;
    say("add-status", "Sending …");
    try {
      let template = await json("/v1/templates", { method: "POST", body: form });
      say("add-status", "Preparing …");
      await refresh();
      while (template.state === "preparing") {
        await pause(500);
        template = await json(template.urls.self);
      }
      await refresh();
      if (template.state === "failed") throw new Error(template.problem?.detail || "It cannot be used.");
      const radio = [...document.querySelectorAll("input[name=template]")].find((found) => found.value === name);
      if (radio) radio.checked = true;
      say("add-status", `${name} is ready.`);
    } catch (error) {
      say("add-status", error.message);
    } finally {
      byId("add-button").disabled = false;
    }
  });

  // -- speech --------------------------------------------------------------------------------------------------------

  function choose(file, name) {
    speech = file;
    say("chosen", `Chosen: ${name}`);
    say("error", "");
    if (byId("listen").src) URL.revokeObjectURL(byId("listen").src);
    byId("listen").src = URL.createObjectURL(file);
    byId("listen").hidden = false;
  }

  byId("audio").addEventListener("change", (event) => {
    if (event.target.files[0]) choose(event.target.files[0], event.target.files[0].name);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    byId("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      const file = kind === "drop" && event.dataTransfer.files[0];
      if (file) choose(file, file.name);
    });
  }

  let recorder = null;
  byId("record").addEventListener("click", async () => {
    if (recorder) return recorder.stop();
    try {
      if (!navigator.mediaDevices) throw new Error("The microphone needs https, or this machine's own address.");
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const pieces = [];
      recorder = new MediaRecorder(stream);
      recorder.ondataavailable = (event) => pieces.push(event.data);
      const began = Date.now();
      const ticking = setInterval(() => say("clock", `${((Date.now() - began) / 1000).toFixed(0)} s`), 250);
      recorder.onstop = () => {
        clearInterval(ticking);
        stream.getTracks().forEach((track) => track.stop());
        pressed(byId("record"), false, "Record");
        choose(new Blob(pieces, { type: recorder.mimeType }), "a recording");
        recorder = null;
      };
      recorder.start();
      pressed(byId("record"), true, "Stop");
    } catch (error) {
      say("error", error.name === "NotAllowedError" ? "The microphone was not allowed." : error.message);
    }
  });

  function pressed(button, on, text) {
    button.setAttribute("aria-pressed", String(on));
    button.textContent = text;
  }

  // -- the video -----------------------------------------------------------------------------------------------------

  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const template = document.querySelector("input[name=template]:checked")?.value;
    say("error", "");
    if (!template) return say("error", "Choose who speaks, or add a person.");
    if (!speech) return say("error", "Choose an audio file, or record one.");
    const form = new FormData();
    form.append("template", template);
    form.append("audio", speech, "speech");
    byId("make").disabled = true;
    byId("result").hidden = true;
    byId("work").hidden = false;
    progress(0, "Sending the audio …");
    try {
      current = await json("/v1/videos", { method: "POST", body: form });
      byId("cancel").focus();
      await follow();
      if (current.state === "succeeded") await show(template);
      else if (current.state === "failed") throw new Error(current.problem?.detail || "It failed.");
    } catch (error) {
      if (error.status !== 404) say("error", error.message);
    } finally {
      byId("make").disabled = false;
      byId("work").hidden = true;
      if (byId("result").hidden) byId("make").focus();
    }
  });

  async function follow() {
    while (!current.finished) {
      const text = current.place ? `Waiting: number ${current.place} in the queue`
        : `${current.frames} of ${current.total} frames`;
      progress(current.progress, text);
      await pause(400);
      current = await json(current.urls.self);
    }
  }

  function progress(part, text) {
    byId("bar").value = part;
    say("step", text);
    say("told", part ? `${Math.floor(part * 4) * 25} percent` : text);  // a screen reader hears five steps, not each
  }

  async function show(template) {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    const made = await playable(current.urls.content);
    byId("made").src = made;
    byId("download").href = made;
    byId("source").src = await playable(`/v1/templates/${encodeURIComponent(template)}/content`);
    const { frames, seconds, passed_through: unchanged } = current.summary;
    const note = unchanged ? `, ${unchanged} without a face left unchanged` : "";
    say("figures", `${frames} frames in ${seconds.toFixed(1)} s${note}`);
    byId("result").hidden = false;
    byId("result").focus();
  }

  byId("cancel").addEventListener("click", async () => {
    if (current) await ask(current.urls.self, { method: "DELETE" }).catch(() => {});
  });
  byId("forget").addEventListener("click", async () => {
    await ask(current.urls.self, { method: "DELETE" }).catch(() => {});
    byId("made").removeAttribute("src");
    byId("result").hidden = true;
    byId("make").focus();
  });
  byId("both").addEventListener("click", () => {
    for (const player of [byId("made"), byId("source")]) {
      player.currentTime = 0;
      player.play();
    }
  });

  // -- tabs ----------------------------------------------------------------------------------------------------------

  const tabs = [byId("tab-video"), byId("tab-live")];
  function open(tab) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
    if (tab.id === "tab-live") lookForLive();
    else stopLive();
  }
  for (const tab of tabs) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.indexOf(tab), End: 1 - tabs.indexOf(tab) }[event.key];
      if (step === undefined) return;
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      next.focus();
      open(next);
    });
  }

  // -- live ----------------------------------------------------------------------------------------------------------

  const RATE = 16000;
  let live = null;

  async function lookForLive() {
    try {
      await json("/v1/live/info");
      say("live-status", "Press Start and speak; headphones keep the microphone from hearing the answer.");
      byId("live-controls").hidden = false;
    } catch (error) {
      say("live-status", error.status === 404 ? "Live is not available on this server." : error.message);
      byId("live-controls").hidden = true;
    }
  }

  byId("live-button").addEventListener("click", () => (live ? stopLive() : startLive()));

  async function startLive() {
    try {
      if (!navigator.mediaDevices) throw new Error("The microphone needs https, or this machine's own address.");
      live = { stream: await navigator.mediaDevices.getUserMedia({ audio: true }) };
      live.context = new AudioContext({ sampleRate: RATE });
      await live.context.audioWorklet.addModule("/page.js");
      live.socket = new WebSocket(location.href.replace(/^http/, "ws").replace(/[^/]*$/, "v1/live"));
      live.socket.binaryType = "arraybuffer";
      live.socket.onopen = () => live.socket.send(JSON.stringify({
        type: "start", template: byId("live-template").value, rate: RATE, microphone: true, ...(key && { key }),
      }));
      let head = null;
      live.playAt = 0;
      live.socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return drawLive(head, data);
        head = JSON.parse(data);
        if (head.type === "ready") hearLive(head);
        if (head.type === "error") { stopLive(); say("live-status", head.detail); }
      };
      live.socket.onclose = () => stopLive();
      pressed(byId("live-button"), true, "Stop");
    } catch (error) {
      stopLive();
      say("live-status", error.name === "NotAllowedError" ? "The microphone was not allowed." : error.message);
    }
  }

  function hearLive(ready) {
    Object.assign(byId("live-picture"), { width: ready.width, height: ready.height });
    say("live-status", `Speak. Look-ahead ${(1000 * ready.look_ahead).toFixed(0)} ms.`);
    const node = new AudioWorkletNode(live.context, "microphone");
    node.port.onmessage = ({ data }) => live?.socket.readyState === 1 && live.socket.send(data);
    live.context.createMediaStreamSource(live.stream).connect(node);
  }

  async function drawLive(head, data) {
    if (!live || head.type !== "frame") return;
    if (head.audio) {
      const samples = Float32Array.from(new Int16Array(data.slice(head.image)), (x) => x / 32768);
      const buffer = live.context.createBuffer(1, samples.length, RATE);
      buffer.copyToChannel(samples, 0);
      const source = new AudioBufferSourceNode(live.context, { buffer });
      source.connect(live.context.destination);
      live.playAt = Math.max(live.playAt, live.context.currentTime + 0.02);
      source.start(live.playAt);
      live.playAt += buffer.duration;
    }
    if (head.latency_ms) say("live-figures", `${head.latency_ms.toFixed(0)} ms from audio to frame`);
    if (!head.image) return;
    const picture = await createImageBitmap(new Blob([data.slice(0, head.image)], { type: "image/jpeg" }));
    byId("live-picture").getContext("2d").drawImage(picture, 0, 0);
    picture.close();
  }

  function stopLive() {
    const { stream, context, socket } = live || {};
    live = null;
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    if (socket) { socket.onclose = null; socket.close(); }
    pressed(byId("live-button"), false, "Start");
  }

  refresh();
}
