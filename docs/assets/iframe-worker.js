/* Search from file://, where browsers start no workers: the code of the worker runs in a hidden frame.
   The theme's offline plugin would fetch such a script from the network unless it finds one of this name. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "";
      this.scope = new Promise((resolve) => {
        frame.onload = async () => {
          const scope = frame.contentWindow;
          const load = (src) =>
            new Promise((done) => {
              const script = scope.document.createElement("script");
              Object.assign(script, { src, onload: done });
              scope.document.body.append(script);
            });
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          scope.importScripts = async (...urls) => {
            for (const src of urls) await load(src);
          };
          await load(url);
          resolve(scope);
        };
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
}
