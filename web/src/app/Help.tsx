import { Dialog } from "@base-ui/react/dialog";
import { SHORTCUTS } from "./shortcuts";

/** The keys, and what the marks mean. */
export function Help({ open, onOpenChange }: { open: boolean; onOpenChange: (open: boolean) => void }) {
  return (
    <Dialog.Root open={open} onOpenChange={onOpenChange}>
      <Dialog.Portal>
        <Dialog.Backdrop className="backdrop" />
        <Dialog.Popup className="dialog">
          <Dialog.Title className="dialog-title">Help</Dialog.Title>
          <dl className="keys" aria-label="Shortcuts">
            {SHORTCUTS.map(({ keys, what }) => (
              <div key={what}>
                <dt>
                  {keys.map((key) => (
                    <kbd key={key}>{key}</kbd>
                  ))}
                </dt>
                <dd>{what}</dd>
              </div>
            ))}
          </dl>
          <p className="dialog-text">
            A page that says <strong>Live</strong> shows changes as they happen. <strong>Behind</strong> means that more
            is on its way than is shown, <strong>Reconnecting</strong> that the connection broke: what happens meanwhile
            is shown when it is back, and nothing is lost.
          </p>
          <div className="dialog-actions">
            <Dialog.Close className="button">Close</Dialog.Close>
          </div>
        </Dialog.Popup>
      </Dialog.Portal>
    </Dialog.Root>
  );
}
